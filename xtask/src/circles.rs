//! `cargo xtask circles`: no file of a crate needs another one that needs it.
//!
//! Every file is parsed with the compiler's grammar. A file needs another where it imports or names something that is defined there. A
//! module that only hands on what its children define (`mod child;`, `pub use child::Thing`) does not need them: whoever imports
//! `Thing` through it needs the file of the child. Tests may import what they like. Methods are called without a path, so a call
//! of one is not seen; but its type has to be named somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, UseTree, Visibility};

use crate::peers::root;
use crate::workspace::targets;

/// Check that no files of a crate need each other in a circle
#[derive(Debug, Args)]
pub struct CirclesArgs {}

/// Checks every library and program of the workspace.
///
/// # Errors
/// If a file cannot be parsed, or some files need each other.
pub fn run(_: &CirclesArgs) -> Result<()> {
    let root = root()?;
    let mut found = Vec::new();
    let mut files = 0;
    for target in targets()?
        .iter()
        .filter(|target| ["lib", "bin"].contains(&target.kind.as_str()))
    {
        let sources = Sources::read(&target.source)?;
        files += sources.files().len();
        found.extend(sources.circles());
    }
    let count = found.len();
    for circle in found {
        println!("{}", circle.below(root));
    }
    if count > 0 {
        bail!("{count} circles among {files} files");
    }
    println!("no circles among {files} files");
    Ok(())
}

/// A path such as `crate::figures::curves`, without `crate`.
type ModulePath = Vec<String>;

/// A module, inline or a file.
#[derive(Debug, Default)]
struct Module {
    file: PathBuf,
    /// Names of what it defines, its child modules apart.
    defined: BTreeSet<String>,
    /// Names that it has from elsewhere, with the paths that it gives for them.
    imported: Vec<(String, Vec<String>)>,
    /// Paths from which it has every name.
    globs: Vec<Vec<String>>,
    /// Paths that it names, imports included, each as it stands.
    named: Vec<Vec<String>>,
    /// Names that it hands on from its own children, which is no need of theirs unless it names them too.
    handed_on: BTreeSet<String>,
}

/// The modules of a crate.
#[derive(Debug, Default)]
struct Sources(BTreeMap<ModulePath, Module>);

/// Files that need each other, and where.
#[derive(Debug)]
struct Circle(Vec<(PathBuf, PathBuf, String)>);

impl Circle {
    /// As text, the files named from a directory.
    fn below(&self, root: &Path) -> String {
        let lines = self.0.iter().map(|(from, to, path)| {
            let short = |file: &Path| file.strip_prefix(root).unwrap_or(file).display().to_string();
            format!("  {} needs {} for {path}", short(from), short(to))
        });
        ["circle:".to_string()]
            .into_iter()
            .chain(lines)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Sources {
    /// Reads a crate from its first file.
    fn read(first: &Path) -> Result<Self> {
        let mut sources = Self::default();
        let folder = first.parent().context("a source without a folder")?;
        sources.read_file(Vec::new(), first, folder)?;
        Ok(sources)
    }

    /// `folder` is where the files of its child modules lie.
    fn read_file(&mut self, path: ModulePath, file: &Path, folder: &Path) -> Result<()> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let parsed = syn::parse_file(&text).with_context(|| format!("cannot parse {}", file.display()))?;
        self.read_items(path, file, folder, &parsed.items)
    }

    fn read_items(&mut self, path: ModulePath, file: &Path, folder: &Path, items: &[Item]) -> Result<()> {
        let children: BTreeSet<String> = items
            .iter()
            .filter_map(child)
            .map(|child| child.ident.to_string())
            .collect();
        let mut reader = Reader {
            module: Module {
                file: file.to_path_buf(),
                ..Module::default()
            },
            children: &children,
        };
        items.iter().for_each(|item| reader.visit_item(item));
        self.0.insert(path.clone(), reader.module);
        for child in items
            .iter()
            .filter_map(child)
            .filter(|child| !is_for_tests(&child.attrs))
        {
            let name = child.ident.to_string();
            let (path, below) = ([&path[..], &[name.clone()]].concat(), folder.join(&name));
            if let Some((_, items)) = &child.content {
                self.read_items(path, file, &below, items)?;
                continue;
            }
            let candidates = [folder.join(format!("{name}.rs")), below.join("mod.rs")];
            let file = candidates.iter().find(|file| file.is_file());
            let file = file.with_context(|| format!("module {} has no file", path.join("::")))?;
            self.read_file(path, file, &below)?;
        }
        Ok(())
    }

    fn files(&self) -> BTreeSet<&Path> {
        self.0.values().map(|module| module.file.as_path()).collect()
    }

    /// The groups of files that need each other.
    fn circles(&self) -> Vec<Circle> {
        let needs = self.needs();
        let mut graph: DiGraphMap<&Path, ()> = DiGraphMap::new();
        for (from, to) in needs.keys() {
            graph.add_edge(from, to, ());
        }
        let groups = tarjan_scc(&graph).into_iter().filter(|group| group.len() > 1);
        let within = |group: Vec<&Path>| {
            let inner = needs
                .iter()
                .filter(|((from, to), _)| group.contains(from) && group.contains(to));
            Circle(
                inner
                    .map(|((from, to), path)| (from.to_path_buf(), to.to_path_buf(), path.clone()))
                    .collect(),
            )
        };
        groups.map(within).collect()
    }

    /// Which file needs which, and one path for which it does.
    fn needs(&self) -> BTreeMap<(&Path, &Path), String> {
        let mut needs = BTreeMap::new();
        for (path, module) in &self.0 {
            let handed_on = module.handed_on.iter().map(|name| vec![name.clone()]);
            let names: BTreeSet<&String> = module
                .named
                .iter()
                .filter(|path| path.len() == 1)
                .map(|path| &path[0])
                .collect();
            let used = handed_on.filter(|path| names.contains(&path[0]));
            for named in module.named.iter().filter(|path| path.len() > 1).cloned().chain(used) {
                let Some(file) = self.file_of(path, &named) else {
                    continue;
                };
                if file != module.file {
                    needs
                        .entry((module.file.as_path(), file))
                        .or_insert_with(|| named.join("::"));
                }
            }
        }
        needs
    }

    /// The file that defines what a path leads to from a module; none if that is not of this crate.
    fn file_of(&self, from: &[String], path: &[String]) -> Option<&Path> {
        let found = self.definer(from, path, &mut BTreeSet::new())?;
        self.0.get(&found).map(|module| module.file.as_path())
    }

    fn definer(
        &self,
        from: &[String],
        path: &[String],
        seen: &mut BTreeSet<(ModulePath, Vec<String>)>,
    ) -> Option<ModulePath> {
        if !seen.insert((from.to_vec(), path.to_vec())) {
            return None;
        }
        let mut at = from.to_vec();
        let mut rest = path;
        let mut is_ours = false;
        while let Some((first, after)) = rest.split_first() {
            match first.as_str() {
                "crate" => at.clear(),
                "self" => {}
                "super" => {
                    at.pop()?;
                }
                name => {
                    let below = [&at[..], &[name.to_string()]].concat();
                    if !self.0.contains_key(&below) {
                        break;
                    }
                    at = below;
                }
            }
            is_ours = true;
            rest = after;
        }
        let module = self.0.get(&at)?;
        let Some((name, after)) = rest.split_first() else {
            return is_ours.then_some(at);
        };
        if module.defined.contains(name) {
            return Some(at);
        }
        if let Some((_, import)) = module.imported.iter().find(|(imported, _)| imported == name) {
            let whole = [&import[..], after].concat();
            return self.definer(&at, &whole, seen);
        }
        for glob in &module.globs {
            let place = self.definer(&at, glob, seen);
            if let Some(found) = place.and_then(|place| self.definer(&place, rest, seen)) {
                return Some(found);
            }
        }
        // What a macro defines, for example.
        is_ours.then_some(at)
    }
}

/// The module that an item is, if it is one.
fn child(item: &Item) -> Option<&ItemMod> {
    match item {
        Item::Mod(module) => Some(module),
        _ => None,
    }
}

/// Whether something is compiled for tests alone: `#[cfg(test)]`, `#[cfg(all(test, …))]`, `#[test]`.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let condition = match &attribute.meta {
            syn::Meta::List(list) if list.path.is_ident("cfg") => list.tokens.to_string(),
            meta => return meta.path().is_ident("test"),
        };
        condition == "test"
            || (condition.starts_with("all") && condition.contains("test") && !condition.contains("not"))
    })
}

/// Collects what a module defines and names.
struct Reader<'a> {
    module: Module,
    children: &'a BTreeSet<String>,
}

impl Reader<'_> {
    fn import(&mut self, tree: &UseTree, before: &[String], is_public: bool) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.import(&path.tree, &with(&path.ident), is_public),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(tree, before, is_public)),
            UseTree::Glob(_) => {
                self.module.globs.push(before.to_vec());
                if !self.is_handing_on(before, is_public) {
                    self.module.named.push([before, &["*".to_string()]].concat());
                }
            }
            UseTree::Name(name) if name.ident == "self" => {
                let last = before.last().cloned().unwrap_or_default();
                self.import_as(last, before.to_vec(), is_public);
            }
            UseTree::Name(name) => self.import_as(name.ident.to_string(), with(&name.ident), is_public),
            UseTree::Rename(name) => self.import_as(name.rename.to_string(), with(&name.ident), is_public),
        }
    }

    fn import_as(&mut self, name: String, path: Vec<String>, is_public: bool) {
        if self.is_handing_on(&path, is_public) {
            self.module.handed_on.insert(name.clone());
        } else {
            self.module.named.push(path.clone());
        }
        self.module.imported.push((name, path));
    }

    fn is_handing_on(&self, path: &[String], is_public: bool) -> bool {
        let first = path.iter().find(|name| *name != "self");
        is_public && first.is_some_and(|first| self.children.contains(first))
    }

    /// Paths in what a macro is given, which is not parsed: names with `::` between them.
    fn name_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.module.named.push(std::mem::take(&mut path));
                    }
                    path.push(name.to_string());
                }
                TokenTree::Group(group) => {
                    self.module.named.push(std::mem::take(&mut path));
                    self.name_tokens(group.stream());
                }
                _ => self.module.named.push(std::mem::take(&mut path)),
            }
            colons = 0;
        }
        self.module.named.push(path);
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, name) = match item {
            Item::Const(item) => (&item.attrs, Some(&item.ident)),
            Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
            Item::Static(item) => (&item.attrs, Some(&item.ident)),
            Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            Item::Type(item) => (&item.attrs, Some(&item.ident)),
            Item::Union(item) => (&item.attrs, Some(&item.ident)),
            Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
            Item::Impl(item) => (&item.attrs, None),
            Item::Use(item) => (&item.attrs, None),
            // Modules are read by themselves.
            _ => return,
        };
        if is_for_tests(attributes) {
            return;
        }
        self.module.defined.extend(name.map(ToString::to_string));
        visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        // Within a function too.
        self.import(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names = path.segments.iter().map(|segment| segment.ident.to_string());
        self.module.named.push(names.collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.name_tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let place = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = place.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let sources = Sources::read(&place.path().join("lib.rs")).unwrap();
        assert_eq!(sources.files().len(), files.len());
        sources
            .circles()
            .iter()
            .map(|circle| circle.below(place.path()))
            .collect()
    }

    #[test]
    fn files_that_import_each_other_are_a_circle() {
        let found = circles(&[
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "use crate::b::B; pub struct A;"),
            ("b.rs", "pub struct B; fn b(_: super::a::A) {}"),
            ("c.rs", "use crate::{a, b::B};"),
        ]);
        assert_eq!(
            found,
            ["circle:\n  a.rs needs b.rs for crate::b::B\n  b.rs needs a.rs for super::a::A"]
        );
    }

    #[test]
    fn a_longer_circle_is_found_through_a_module_that_hands_on() {
        let found = circles(&[
            ("lib.rs", "mod a; mod b; mod c; pub use a::A; pub(crate) use b::*;"),
            ("a.rs", "use crate::B; pub struct A;"),
            ("b.rs", "pub struct B; fn b() { c::go() } use crate::c;"),
            ("c.rs", "pub fn go() { println!(\"{}\", crate::A::name()) }"),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
        for line in [
            "a.rs needs b.rs for crate::B",
            "b.rs needs c.rs for",
            "c.rs needs a.rs for crate::A::name",
        ] {
            assert!(found[0].contains(line), "{line} in {}", found[0]);
        }
    }

    #[test]
    fn a_parent_and_a_child_that_use_each_other_are_a_circle() {
        let child = ("a/child.rs", "use super::A; pub struct Child(A); pub fn make() {}");
        let handing_on = "mod child; pub use child::Child; pub struct A;";
        assert_eq!(circles(&[("lib.rs", "mod a;"), ("a.rs", handing_on), child]), [""; 0]);
        for using in [
            "mod child; pub use child::Child; pub struct A; fn f(_: Child) {}",
            "mod child; pub struct A; fn f() { child::make() }",
            "mod child; pub struct A; use child::make;",
        ] {
            assert_eq!(
                circles(&[("lib.rs", "mod a;"), ("a.rs", using), child]).len(),
                1,
                "{using}"
            );
        }
    }

    #[test]
    fn tests_and_other_crates_and_inline_modules_make_none() {
        let found = circles(&[
            (
                "lib.rs",
                "mod a; mod b; pub mod inline { pub use crate::a::A; } #[cfg(test)] mod tests { use crate::a; use crate::b; }",
            ),
            (
                "a.rs",
                "pub struct A; use std::b::B; #[cfg(test)] mod tests { use super::*; use crate::b::B; }",
            ),
            (
                "b.rs",
                "pub struct B; use crate::inline::A; #[cfg(test)] use crate::tests;",
            ),
        ]);
        assert_eq!(found, [""; 0]);
    }
}
