//! What searching for a source's files and reading them leaves out, and why.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a file or a directory is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LeftOutReason {
    /// Its name begins with a dot, and hidden files were not asked for.
    Hidden,
    /// It is what macOS writes beside a file on a foreign disk.
    AppleDouble,
    /// Its format is not one that is read.
    UnknownFormat,
    /// It is neither a file nor a directory.
    NotAFile,
    /// It is a link that leads nowhere.
    BrokenLink,
    /// It is read already, under another path or by a link.
    Repeat,
    /// It is validation text.
    Validation,
    /// It is one JSON object without the text field: something's settings.
    Settings,
    /// It holds no document, or none that can be used.
    NoDocument,
}

impl LeftOutReason {
    fn words(self) -> [&'static str; 2] {
        match self {
            Self::Hidden => ["hidden path", "hidden paths"],
            Self::AppleDouble => ["resource file of macOS", "resource files of macOS"],
            Self::UnknownFormat => ["file of another format", "files of other formats"],
            Self::NotAFile => ["path that is no file", "paths that are no files"],
            Self::BrokenLink => ["broken link", "broken links"],
            Self::Repeat => ["repeat of what is read already", "repeats of what is read already"],
            Self::Validation => ["validation file", "validation files"],
            Self::Settings => ["json file of another kind", "json files of another kind"],
            Self::NoDocument => ["file without a good document", "files without a good document"],
        }
    }
}

/// Files and directories that are left out for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The reason.
    pub reason: LeftOutReason,
    /// How many there are.
    pub count: u64,
    /// The first few.
    pub first: Vec<String>,
}

/// Paths that are remembered for each reason.
const REMEMBERED: usize = 20;

/// Paths that are shown for each reason.
const SHOWN: usize = 3;

impl LeftOut {
    /// Adds a path to those that are left out.
    pub(super) fn add(list: &mut Vec<Self>, reason: LeftOutReason, path: impl fmt::Display) {
        let left = Self {
            reason,
            count: 1,
            first: vec![path.to_string()],
        };
        Self::join(list, left);
    }

    /// What several sources leave out, put together by reason.
    pub fn of_all<'a>(of_each: impl IntoIterator<Item = &'a Self>) -> Vec<Self> {
        let mut list = Vec::new();
        for left in of_each {
            Self::join(&mut list, left.clone());
        }
        list
    }

    fn join(list: &mut Vec<Self>, more: Self) {
        match list.iter_mut().find(|left| left.reason == more.reason) {
            Some(left) => {
                left.count += more.count;
                let room = REMEMBERED.saturating_sub(left.first.len());
                left.first.extend(more.first.into_iter().take(room));
            }
            None => list.push(more),
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [one, many] = self.reason.words();
        let shown = &self.first[..self.first.len().min(SHOWN)];
        let words = if self.count == 1 { one } else { many };
        write!(formatter, "{} {words}: {}", self.count, shown.join(", "))?;
        if self.count > shown.len() as u64 {
            formatter.write_str(", …")?;
        }
        Ok(())
    }
}
