//! `#[derive(Collate)]`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Fields, Path, Result};

/// The batch struct and its two implementations.
pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let options = Options::of(input)?;
    let fields = named_fields(input)?;
    if let Some(parameter) = input.generics.params.first() {
        return Err(Error::new(
            parameter.span(),
            "`#[derive(Collate)]` is for structs without generic parameters: name the types, such as `Array<f32>`",
        ));
    }
    let (path, item, visibility) = (&options.path, &input.ident, &input.vis);
    let batch = format_ident!("{item}Batch");
    let names: Vec<_> = fields.iter().map(|field| &field.ident).collect();
    // Not the fields' own names, which may be `items` or `order`.
    let lists: Vec<_> = (0..fields.len()).map(|index| format_ident!("column_{index}")).collect();
    let labels: Vec<_> = names.iter().flat_map(|name| name.as_ref().map(ToString::to_string)).collect();
    let columns: Vec<_> = fields
        .iter()
        .map(|field| {
            let ty = &field.ty;
            quote!(<#ty as #path::Collate>::Batch)
        })
        .collect();
    let definitions = fields.iter().zip(&columns).zip(&labels).map(|((field, column), label)| {
        let (name, visibility) = (&field.ident, &field.vis);
        let doc = format!("`{label}` of each sample.");
        quote!(#[doc = #doc] #visibility #name: #column)
    });
    let doc = format!("A batch of [`{item}`]s.");
    let derives = &options.derives;
    Ok(quote! {
        #[doc = #doc]
        #[derive(Debug #(, #derives)*)]
        #visibility struct #batch {
            #(#definitions,)*
        }

        impl #path::Collate for #item {
            type Batch = #batch;

            fn collate(items: ::std::vec::Vec<Self>) -> #path::Result<#batch> {
                #(let mut #lists = ::std::vec::Vec::with_capacity(items.len());)*
                for item in items {
                    #(#lists.push(item.#names);)*
                }
                ::core::result::Result::Ok(#batch {
                    #(#names: #path::Collate::collate(#lists)
                        .map_err(|error| error.at_if_absent("field", #labels))?,)*
                })
            }
        }

        impl #path::Interleave for #batch {
            fn interleave(
                parts: ::std::vec::Vec<Self>,
                order: &[#path::Pick],
            ) -> #path::Result<Self> {
                #(let mut #lists = ::std::vec::Vec::with_capacity(parts.len());)*
                for part in parts {
                    #(#lists.push(part.#names);)*
                }
                ::core::result::Result::Ok(Self {
                    #(#names: #path::Interleave::interleave(#lists, order)
                        .map_err(|error| error.at_if_absent("field", #labels))?,)*
                })
            }
        }
    })
}

/// What `#[collate(…)]` says.
struct Options {
    /// Where `leyden-data` is found.
    path: Path,
    /// What the batch derives besides `Debug`.
    derives: Vec<Path>,
}

impl Options {
    fn of(input: &DeriveInput) -> Result<Self> {
        let mut options = Self { path: syn::parse_quote!(::leyden::data), derives: Vec::new() };
        for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("collate")) {
            attribute.parse_nested_meta(|meta| {
                if meta.path.is_ident("crate") {
                    options.path = meta.value()?.parse::<syn::LitStr>()?.parse()?;
                    Ok(())
                } else if meta.path.is_ident("derive") {
                    meta.parse_nested_meta(|derive| {
                        options.derives.push(derive.path);
                        Ok(())
                    })
                } else {
                    Err(meta.error(
                        "`#[collate(…)]` takes `crate = \"path::of::leyden_data\"` and `derive(Trait, …)`",
                    ))
                }
            })?;
        }
        Ok(options)
    }
}

fn named_fields(input: &DeriveInput) -> Result<Vec<&syn::Field>> {
    let wrong = |what: &str| {
        Err(Error::new(
            input.ident.span(),
            format!("`#[derive(Collate)]` is for structs with named fields; `{}` is {what}", input.ident),
        ))
    };
    match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) if fields.named.is_empty() => wrong("a struct without fields"),
            Fields::Named(fields) => Ok(fields.named.iter().collect()),
            Fields::Unnamed(_) => wrong("a tuple struct: plain tuples are collated without a derive"),
            Fields::Unit => wrong("a struct without fields"),
        },
        Data::Enum(_) => wrong("an enum: give each variant a number, or a data set of its own"),
        Data::Union(_) => wrong("a union"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(rust: &str) -> String {
        expand(&syn::parse_str(rust).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn says_what_it_is_for() {
        let start = "`#[derive(Collate)]` is for structs with named fields; `A` is ";
        let cases = [
            ("enum A { B }", "an enum: give each variant a number, or a data set of its own"),
            ("struct A(f32);", "a tuple struct: plain tuples are collated without a derive"),
            ("struct A;", "a struct without fields"),
            ("struct A {}", "a struct without fields"),
            ("union A { b: u8 }", "a union"),
        ];
        for (rust, what) in cases {
            assert_eq!(refused(rust), format!("{start}{what}"));
        }
        let generic = "`#[derive(Collate)]` is for structs without generic parameters: name the types, such as \
                       `Array<f32>`";
        assert_eq!(refused("struct A<T> { b: T }"), generic);
        assert_eq!(refused("struct A<'a> { b: &'a str }"), generic);
    }

    #[test]
    fn refuses_an_option_that_it_does_not_know() {
        let expected = "`#[collate(…)]` takes `crate = \"path::of::leyden_data\"` and `derive(Trait, …)`";
        assert_eq!(refused("#[collate(rename = \"B\")] struct A { b: f32 }"), expected);
    }

    #[test]
    fn names_the_batch_and_keeps_visibilities() {
        let rust = "#[collate(derive(Clone))] pub(crate) struct A { pub b: f32, c: i64 }";
        let expanded = expand(&syn::parse_str(rust).unwrap()).unwrap();
        let file: syn::File = syn::parse2(expanded).unwrap();
        let syn::Item::Struct(batch) = &file.items[0] else { panic!("no struct comes first") };
        assert_eq!(batch.ident, "ABatch");
        assert!(matches!(batch.vis, syn::Visibility::Restricted(_)));
        let visible: Vec<bool> =
            batch.fields.iter().map(|field| matches!(field.vis, syn::Visibility::Public(_))).collect();
        assert_eq!(visible, [true, false]);
    }
}
