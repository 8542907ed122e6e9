//! What a declaration of a number says.

/// A number that a record has: the one declaration from which the readers of `metrics.jsonl`, the dashboard, TensorBoard and the report
/// know it.
#[derive(Debug)]
pub struct Quantity<R: 'static> {
    /// Its key in a line of `metrics.jsonl`; a dot leads into an object.
    pub key: &'static str,
    /// What people call it.
    pub name: &'static str,
    /// Its unit; empty where it has none.
    pub unit: &'static str,
    /// Whether larger values are better.
    pub higher_is_better: bool,
    /// How it is written for people.
    pub format: Format,
    /// Whether it is on the dashboard.
    pub on_dashboard: bool,
    /// How a line of a log says it, with `{}` for the number; empty where a line leaves it out.
    pub in_a_line: &'static str,
    /// Its tag in TensorBoard.
    pub tag: &'static str,
    /// How the report draws it, if it does.
    pub curve: Option<Curve>,
    /// The number of a record; none where the record has none.
    pub read: fn(&R) -> Option<f64>,
}

impl<R> Quantity<R> {
    /// A number that is on the dashboard with four digits after the point, and lower is better; each declaration says what is different
    /// about its own.
    pub(super) const fn new(key: &'static str, name: &'static str, read: fn(&R) -> Option<f64>) -> Self {
        Self {
            key,
            name,
            unit: "",
            higher_is_better: false,
            format: Format::Fixed(4),
            on_dashboard: true,
            in_a_line: "",
            tag: "",
            curve: None,
            read,
        }
    }
}

/// How a number is written for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// With so many digits after the point.
    Fixed(usize),
    /// With a sign and so many digits after the point.
    Signed(usize),
    /// As a power of ten with so many digits after the point.
    Scientific(usize),
}

impl Format {
    /// The number as text.
    ///
    /// # Examples
    /// ```
    /// use gpas_train::metrics::Format;
    ///
    /// assert_eq!(Format::Fixed(3).text(71.40549), "71.405");
    /// assert_eq!(Format::Signed(2).text(0.5), "+0.50");
    /// assert_eq!(Format::Scientific(3).text(0.001), "1.000e-3");
    /// ```
    pub fn text(self, value: f64) -> String {
        match self {
            Format::Fixed(digits) => format!("{value:.digits$}"),
            Format::Signed(digits) => format!("{value:+.digits$}"),
            Format::Scientific(digits) => format!("{value:.digits$e}"),
        }
    }
}

/// How the report draws a number against the tokens trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Curve {
    /// Title of the figure.
    pub title: &'static str,
    /// How the number was computed, for the caption.
    pub method: &'static str,
    /// How to read the figure, for the caption; empty where nothing has to be said.
    pub reading: &'static str,
    /// Name of the vertical axis.
    pub axis: &'static str,
    /// Whether that axis is logarithmic.
    pub is_logarithmic: bool,
}

/// A number that a record has of every layer.
#[derive(Debug)]
pub struct LayerQuantity<R: 'static> {
    /// Its key in a line of `metrics.jsonl`.
    pub key: &'static str,
    /// Its tag in TensorBoard, which the number of the layer follows.
    pub tag: &'static str,
    /// How the report draws it by layer, if it does.
    pub figure: Option<LayerFigure>,
    /// The numbers of a record, first layer first.
    pub read: fn(&R) -> &[Option<f64>],
}

/// How the report draws a number by layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerFigure {
    /// Title of the figure.
    pub title: &'static str,
    /// How the number was computed, and how to read the figure.
    pub caption: &'static str,
    /// Name of the horizontal axis.
    pub x: &'static str,
    /// Name of the vertical axis, which is logarithmic.
    pub y: &'static str,
}
