//! A crate's modules as its sources declare them: what each defines, imports and mentions. Tests are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use quote::ToTokens;
use syn::{Attribute, Item, UseTree, Visibility};

use super::paths::{self, Mention};

/// All modules below one root.
#[derive(Debug, Default)]
pub struct Tree {
    /// Sources, in the order in which they are met.
    pub files: Vec<PathBuf>,
    /// Modules; the first is the root.
    pub modules: Vec<Module>,
    /// Macros by example, and their files.
    pub macros: BTreeMap<String, usize>,
    /// Those of them that are found in the root, wherever they are defined.
    pub exported: BTreeSet<String>,
}

/// A module, in a file of its own or within another's.
#[derive(Debug, Default)]
pub struct Module {
    pub file: usize,
    pub parent: Option<usize>,
    /// Name of the module right below the root that it is or is part of.
    pub top: Option<String>,
    pub children: BTreeMap<String, usize>,
    /// Names that it defines itself.
    pub items: BTreeSet<String>,
    pub uses: Vec<Use>,
    /// Paths outside of `use` items.
    pub mentions: Vec<Mention>,
    /// All words outside of `use` items.
    pub words: BTreeSet<String>,
}

/// One name that a module imports.
#[derive(Debug)]
pub struct Use {
    /// As it is called here; `*` for all.
    pub name: String,
    pub path: Vec<String>,
    pub line: usize,
    /// Handed on to others.
    pub is_public: bool,
}

impl Tree {
    /// Reads a crate from its root file on.
    pub fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        let dir = root.parent().context("the root has a folder")?;
        tree.read_file(root, dir, None, None)?;
        Ok(tree)
    }

    /// Modules right below the root that have a folder.
    pub fn folders(&self) -> BTreeSet<&str> {
        self.modules
            .iter()
            .filter(|module| {
                module.parent.is_some_and(|parent| parent != 0 && self.modules[parent].file != module.file)
            })
            .filter_map(|module| module.top.as_deref())
            .collect()
    }

    /// Name of the module right below the root that a file belongs to.
    pub fn top_of(&self, file: usize) -> Option<&str> {
        self.modules.iter().find(|module| module.file == file)?.top.as_deref()
    }

    /// `dir` is where the files of its modules lie.
    fn read_file(
        &mut self,
        path: &Path,
        dir: &Path,
        parent: Option<usize>,
        top: Option<String>,
    ) -> Result<usize> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let source = syn::parse_file(&text).with_context(|| format!("cannot parse {}", path.display()))?;
        self.files.push(path.to_owned());
        self.read_items(self.files.len() - 1, source.items, dir, parent, top)
    }

    fn read_items(
        &mut self,
        file: usize,
        items: Vec<Item>,
        dir: &Path,
        parent: Option<usize>,
        top: Option<String>,
    ) -> Result<usize> {
        let at = self.modules.len();
        self.modules.push(Module { file, parent, top, ..Module::default() });
        for item in items {
            if is_for_tests(attributes(&item)) {
                continue;
            }
            match item {
                Item::Mod(item) => {
                    let name = item.ident.to_string();
                    let top = self.modules[at].top.clone().or_else(|| Some(name.clone()));
                    let inner = dir.join(&name);
                    let child = match item.content {
                        Some((_, items)) => self.read_items(file, items, &inner, Some(at), top)?,
                        None => {
                            let (path, inner) = self.file_of(file, dir, &name, &item.attrs)?;
                            self.read_file(&path, &inner, Some(at), top)?
                        }
                    };
                    self.modules[at].children.insert(name, child);
                }
                Item::Use(item) => {
                    let is_public = !matches!(item.vis, Visibility::Inherited);
                    if item.leading_colon.is_none() {
                        flatten(&item.tree, &[], is_public, &mut self.modules[at].uses);
                    }
                }
                item => {
                    if let Item::Macro(rules) = &item
                        && let Some(name) = &rules.ident
                    {
                        self.macros.insert(name.to_string(), file);
                        if rules.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export")) {
                            self.exported.insert(name.to_string());
                        }
                    }
                    let module = &mut self.modules[at];
                    module.items.extend(names(&item));
                    paths::scan(item.into_token_stream(), &mut module.mentions, &mut module.words);
                }
            }
        }
        Ok(at)
    }

    /// Source of a module that is declared with a semicolon, and where those of its own modules lie.
    fn file_of(
        &self,
        file: usize,
        dir: &Path,
        name: &str,
        attributes: &[Attribute],
    ) -> Result<(PathBuf, PathBuf)> {
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("path")) {
            if let syn::Meta::NameValue(value) = &attribute.meta
                && let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &value.value
            {
                let beside = self.files[file].parent().context("a file lies in a folder")?;
                let path = beside.join(text.value()).canonicalize().with_context(|| text.value())?;
                let inner = path.parent().context("a file lies in a folder")?.to_owned();
                return Ok((path, inner));
            }
        }
        let inner = dir.join(name);
        for path in [dir.join(format!("{name}.rs")), inner.join("mod.rs")] {
            if path.is_file() {
                return Ok((path, inner));
            }
        }
        bail!("{} declares the module {name}, which has no file", self.files[file].display())
    }
}

fn flatten(tree: &UseTree, before: &[String], is_public: bool, uses: &mut Vec<Use>) {
    let mut add = |name: String, path: Vec<String>, line| uses.push(Use { name, path, line, is_public });
    let joined = |last: String| [before, &[last]].concat();
    match tree {
        UseTree::Path(path) => flatten(&path.tree, &joined(path.ident.to_string()), is_public, uses),
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, before, is_public, uses)),
        UseTree::Name(name) if name.ident == "self" => {
            add(before.last().cloned().unwrap_or_default(), before.to_vec(), paths::line(&name.ident));
        }
        UseTree::Name(name) => {
            add(name.ident.to_string(), joined(name.ident.to_string()), paths::line(&name.ident))
        }
        UseTree::Rename(name) if name.ident == "self" => {
            add(name.rename.to_string(), before.to_vec(), paths::line(&name.ident));
        }
        UseTree::Rename(name) => {
            add(name.rename.to_string(), joined(name.ident.to_string()), paths::line(&name.ident))
        }
        UseTree::Glob(glob) => add("*".into(), before.to_vec(), glob.star_token.spans[0].start().line),
    }
}

/// Whether it stands under `#[cfg(test)]` or `#[cfg(all(test, …))]`.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).any(|attribute| {
        let condition = attribute.meta.to_token_stream().to_string().replace(' ', "");
        condition == "cfg(test)" || condition.starts_with("cfg(all(test,")
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Names that an item brings into its module. Those that macros make are not seen.
fn names(item: &Item) -> Vec<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => return item.ident.iter().map(ToString::to_string).collect(),
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        Item::ForeignMod(block) => {
            return block
                .items
                .iter()
                .filter_map(|item| match item {
                    syn::ForeignItem::Fn(item) => Some(item.sig.ident.to_string()),
                    syn::ForeignItem::Static(item) => Some(item.ident.to_string()),
                    syn::ForeignItem::Type(item) => Some(item.ident.to_string()),
                    _ => None,
                })
                .collect();
        }
        _ => return Vec::new(),
    };
    vec![name.to_string()]
}
