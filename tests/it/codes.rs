//! Every failure class has a page, and every page a class.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn every_code_has_a_page_and_every_page_a_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut codes = BTreeSet::new();
    collect(&root.join("crates"), &mut codes);
    let pages: BTreeSet<String> = fs::read_dir(root.join("docs/errors"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .filter(|name| name != "README")
        .collect();
    assert!(codes.len() > 30, "the search found {codes:?}");
    assert_eq!(codes, pages);
    let table = fs::read_to_string(root.join("docs/errors/README.md")).unwrap();
    for code in &codes {
        let page = fs::read_to_string(root.join(format!("docs/errors/{code}.md"))).unwrap();
        assert!(page.starts_with(&format!("# {code}: ")), "{code}.md begins with its title");
        assert!(table.contains(code.as_str()), "{code} is in the table of docs/errors/README.md");
    }
}

/// Finds `Code::new("X0000"` in the library sources; tests make up codes of their own.
fn collect(folder: &Path, codes: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "tests" && name != "target") {
            collect(&path, codes);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let library = text.split("#[cfg(test)]").next().unwrap_or_default();
            for part in library.split("Code::new(\"").skip(1) {
                codes.insert(part[..5].to_owned());
            }
        }
    }
}
