//! Where a path leads: to the file that defines what it names, through what modules on the way hand on.

use super::modules::{Module, Tree};

/// One file's use of another.
#[derive(Debug)]
pub struct Arrow {
    pub from: usize,
    pub to: usize,
    /// In the file that it comes from.
    pub line: usize,
    /// Path as written, without what it begins with.
    pub name: String,
}

#[derive(Debug, Clone, Copy)]
enum Target {
    Module(usize),
    /// An item of this file.
    File(usize),
    /// In another crate.
    Elsewhere,
}

/// Imports that hand on imports, at the most; circles of them end here.
const DEPTH: usize = 16;

impl Tree {
    /// Arrows between files, in the order in which they are written.
    pub fn arrows(&self) -> Vec<Arrow> {
        let mut arrows = Vec::new();
        for (at, module) in self.modules.iter().enumerate() {
            let mut add = |to: usize, line: usize, path: &[String]| {
                if to != module.file {
                    let skipped =
                        path.iter().take_while(|name| matches!(name.as_str(), "crate" | "self" | "super"));
                    let name = path[skipped.count()..].join("::");
                    arrows.push(Arrow { from: module.file, to, line, name });
                }
            };
            for one in &module.uses {
                // A name that is only handed on is no arrow; a module's is none either, but the paths that begin with it are.
                match self.resolve(at, &one.path, DEPTH) {
                    Target::File(file) if !one.is_public || module.words.contains(&one.name) => {
                        add(file, one.line, &one.path);
                    }
                    Target::Module(other) if one.name == "*" && !one.is_public => {
                        add(self.modules[other].file, one.line, &one.path);
                    }
                    _ => {}
                }
            }
            for mention in &module.mentions {
                let called = mention.path[0].strip_suffix('!');
                if let Some(&file) = called.and_then(|name| self.macros.get(name)) {
                    add(file, mention.line, &mention.path);
                    continue;
                }
                match self.resolve(at, &mention.path, DEPTH) {
                    Target::File(file) => add(file, mention.line, &mention.path),
                    Target::Module(other) => add(self.modules[other].file, mention.line, &mention.path),
                    Target::Elsewhere => {}
                }
            }
        }
        arrows
    }

    fn resolve(&self, from: usize, path: &[String], depth: usize) -> Target {
        let mut target = Target::Module(from);
        for (at, name) in path.iter().enumerate() {
            let Target::Module(module) = target else { return target };
            let is_last = at + 1 == path.len();
            target = match name.as_str() {
                "crate" => Target::Module(0),
                "self" => target,
                "super" => self.modules[module].parent.map_or(Target::Elsewhere, Target::Module),
                name => match self.find(module, name, is_last, depth) {
                    Some(found) => found,
                    None if at == 0 => Target::Elsewhere,
                    // Made by a macro, perhaps.
                    None => Target::File(self.modules[module].file),
                },
            };
        }
        target
    }

    /// Meaning of a name in a module. A last name may be an item beside a module of the same name.
    fn find(&self, at: usize, name: &str, is_last: bool, depth: usize) -> Option<Target> {
        let module: &Module = &self.modules[at];
        let depth = depth.checked_sub(1)?;
        if is_last && module.items.contains(name) {
            return Some(Target::File(module.file));
        }
        if let Some(&child) = module.children.get(name) {
            return Some(Target::Module(child));
        }
        if module.items.contains(name) {
            return Some(Target::File(module.file));
        }
        if let Some(one) = module.uses.iter().find(|one| one.name == name && one.path != [name]) {
            return Some(self.resolve(at, &one.path, depth));
        }
        if at == 0 && self.exported.contains(name) {
            return self.macros.get(name).map(|&file| Target::File(file));
        }
        module.uses.iter().filter(|one| one.name == "*").find_map(|one| {
            match self.resolve(at, &one.path, depth) {
                Target::Module(other) if other != at => self.find(other, name, is_last, depth),
                _ => None,
            }
        })
    }
}
