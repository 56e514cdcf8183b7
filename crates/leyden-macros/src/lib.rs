//! `#[leyden::main]`, which renames `main` and wraps it, and `#[derive(Collate)]`.

#![forbid(unsafe_code)]

mod collate;

use proc_macro::{Delimiter, Group, Ident, TokenStream, TokenTree};

/// Makes `main` end with Leyden's exit codes, and prepares the process before it: see `leyden::program::run`.
///
/// ```text
/// #[leyden::main]
/// fn main() -> leyden::Result<()> { … }
/// ```
///
/// The function keeps its signature; it returns `()`, a `Result`, or a `std::process::ExitCode`.
#[proc_macro_attribute]
pub fn main(attribute: TokenStream, function: TokenStream) -> TokenStream {
    if !attribute.is_empty() {
        return error("`#[leyden::main]` takes no argument");
    }
    let mut tokens: Vec<TokenTree> = function.into_iter().collect();
    let word = |index: usize, text: &str| matches!(tokens.get(index), Some(TokenTree::Ident(ident)) if ident.to_string() == text);
    if (0..tokens.len()).any(|index| word(index, "async")) {
        return error("`#[leyden::main]` is for a plain `fn main`: Leyden has no async runtime");
    }
    let Some(name) = (1..tokens.len()).find(|&index| word(index - 1, "fn") && word(index, "main")) else {
        return error("`#[leyden::main]` goes on `fn main`");
    };
    let takes_nothing = matches!(tokens.get(name + 1), Some(TokenTree::Group(group))
        if group.delimiter() == Delimiter::Parenthesis && group.stream().is_empty());
    if !takes_nothing {
        return error("`main` takes no arguments");
    }
    let span = tokens[name].span();
    tokens[name] = Ident::new("leyden_main", span).into();
    // The user's tokens are spliced in as they are: their places are those of errors and panics.
    let mut body: TokenStream = tokens.into_iter().collect();
    body.extend(tokens_of("::leyden::program::run(leyden_main)"));
    let mut expanded = tokens_of("fn main() -> ::std::process::ExitCode");
    expanded.extend([TokenTree::Group(Group::new(Delimiter::Brace, body))]);
    expanded
}

/// Makes a struct an item that is collated field by field: `#[derive(Collate)] struct Sample { image: Array<f32>, label: i64 }`
/// makes `SampleBatch { image: Array<f32>, label: Array<i64> }`.
///
/// The batch has the struct's visibility and its fields', and derives `Debug`. `#[collate(derive(Clone, PartialEq))]`
/// derives more; `#[collate(crate = "leyden_data")]` says where `Collate` is found if not in `::leyden::data`.
#[proc_macro_derive(Collate, attributes(collate))]
pub fn derive_collate(input: TokenStream) -> TokenStream {
    let input = syn::parse_macro_input!(input as syn::DeriveInput);
    collate::expand(&input).unwrap_or_else(|error| error.to_compile_error()).into()
}

fn error(message: &str) -> TokenStream {
    tokens_of(&format!("::core::compile_error!({message:?});"))
}

fn tokens_of(rust: &str) -> TokenStream {
    rust.parse().expect("it is written here, and valid")
}
