//! How the files of a source are found and read.

use super::separator::Separator;

/// How records are turned into documents.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// The field (json) or column (parquet) that holds the text; `outer.inner` is a field in a field.
    pub field: String,
    /// Whether the first bad record is an error.
    pub strict: bool,
    /// Where a text file is cut into documents.
    pub separator: Separator,
    /// Whether files and directories whose names begin with a dot are read too.
    pub hidden: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            field: "text".into(),
            strict: false,
            separator: Separator::default(),
            hidden: false,
        }
    }
}
