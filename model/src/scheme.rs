//! The normalisation schemes, as data: which norms a sub-layer has, how its residual is scaled and where its gate sits.
//!
//! Every scheme is one wiring of a sub-layer `F` (attention or MLP) on the residual stream `x`:
//!
//! ```text
//! y = post_norm?( α · [G?](x) + branch_scale? · branch_norm?( F( pre_norm?(x) ) ) )        x ← [G?](y)
//! ```
//!
//! A scheme is a [row](SchemeRow), and adding one is adding a row to the table in this file; what stands around `F` is its [`Wiring`]. Here
//! are the rows, with the line that the first and the last of 8 layers compute, `N` being a norm and `G` the gate that `_gpas` after the name
//! adds:
//!
//! | scheme | what it is | layer 1 of 8 | layer 8 of 8 |
//! |---|---|---|---|
//! | `pre` | Pre-LN: `x + F(N(x))` | `x ← G(x + F(N(x)))` | `x ← G(x + F(N(x)))` |
//! | `post` | Post-LN: `N(x + F(x))` | `x ← N(G(x) + F(x))` | `x ← N(G(x) + F(x))` |
//! | `deeppost` | DeepNorm: `N((2L)^¼ · x + F(x))`; projections start as DeepNorm's | `x ← N(2.000·G(x) + F(x))` | `x ← N(2.000·G(x) + F(x))` |
//! | `sandwich` | Sandwich-LN: `x + N'(F(N(x)))` | `x ← G(x + N(F(N(x))))` | `x ← G(x + N(F(N(x))))` |
//! | `post_pre` | Mix-LN: the first `post_num` layers are Post-LN, the rest Pre-LN | `x ← N(G(x) + F(x))` | `x ← G(x + F(N(x)))` |
//! | `lns` | LayerNorm Scaling as released: Pre-LN whose norm weights start at `1/√l` | `x ← G(x + F(N(x)))` | `x ← G(x + F(N(x)))` |
//! | `lns_fixed` | LayerNorm Scaling as in its paper: `x + F(N(x) / √l)` | `x ← G(x + F(N(x)))` | `x ← G(x + F(N(x)·0.354))` |
//! | `scale_pre` | Pre-LN; output projections start at `std / √(2L)` | `x ← G(x + F(N(x)))` | `x ← G(x + F(N(x)))` |
//! | `scale_post_pre` | Mix-LN; output projections start at `std / √(2L)` in its Pre-LN layers | `x ← N(G(x) + F(x))` | `x ← G(x + F(N(x)))` |
//! | `peri` | Peri-LN: `x + N'(F(N(x)))` on a stream that starts as the norm of the embedding | `x ← G(x + N(F(N(x))))` | `x ← G(x + N(F(N(x))))` |
//! | `prores` | Progressive Residual Warmup: `x + min(t / (T·l), 1) · F(N(x))` | `x ← G(x + min(t/100, 1)·F(N(x)))` | `x ← G(x + min(t/800, 1)·F(N(x)))` |
//! | `keel` | Keel: `N'(2L · x + F(N(x)))` | `x ← N(16.000·G(x) + F(N(x)))` | `x ← N(16.000·G(x) + F(N(x)))` |
//! | `layerscale` | LayerScale: `x + λ ⊙ F(N(x))`, λ trained per channel, from 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 in deeper models | `x ← G(x + λ⊙F(N(x)))` | `x ← G(x + λ⊙F(N(x)))` |
//! | `rezero` | ReZero: `x + a · F(x)`, a trained per sub-layer, from 0 | `x ← G(x + a·F(x))` | `x ← G(x + a·F(x))` |
//!
//! `l` is the number of the layer from 1, `L` the number of layers, `t` that of the optimizer steps done (see
//! [`Progress`](crate::Progress)), `T` the configuration's `residual_warmup` (100 in the table), and `post_num` the configuration's too (a
//! quarter of the layers). The final norm before the head is part of every scheme.
//!
//! # A scheme of your own
//!
//! ```
//! use gpas_model::scheme::{NormStart, SchemeRow, Wiring};
//! use gpas_model::{LlamaConfig, NormScheme, Scheme};
//!
//! /// Sandwich-LN in every other layer, Pre-LN between.
//! static EVERY_OTHER: SchemeRow = SchemeRow::new("every_other", "Sandwich-LN in every other layer", &|layer| Wiring {
//!     branch_norm: (layer.index % 2 == 0).then_some(NormStart::PLAIN),
//!     ..Wiring::PRE
//! });
//!
//! let norm = NormScheme::own(&EVERY_OTHER)?;
//! let config = LlamaConfig::new(100, 16, 40, 2, 4).with_scheme(Scheme { norm, gpas: true });
//! assert_eq!(config.scheme.to_string(), "every_other_gpas");
//! assert_eq!(config.formula(0), "x ← G(x + N(F(N(x))))");
//! assert_eq!(config.formula(1), "x ← G(x + F(N(x)))");
//! # Ok::<(), gpas_model::scheme::OwnSchemeError>(())
//! ```
//!
//! Sources: GPAS, arXiv 2506.22049; Mix-LN, arXiv 2412.13795; LayerNorm Scaling, arXiv 2502.05795; DeepNorm, arXiv 2203.00555;
//! Sandwich-LN, arXiv 2105.13290; Peri-LN, arXiv 2502.02732; Keel, arXiv 2601.19895; ProRes, arXiv 2603.05369; LayerScale (CaiT),
//! arXiv 2103.17239; ReZero, arXiv 2003.04887.

mod wiring;

use core::fmt;
use core::hash::{Hash, Hasher};
use core::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::wiring::{BranchScaling, GatePlace, GateSite, NormPlace, NormStart, Wiring};

/// Every scheme that is known by name.
static ROWS: [SchemeRow; 14] = [
    SchemeRow::new("pre", "Pre-LN: `x + F(N(x))`", &|_| Wiring::PRE),
    SchemeRow::new("post", "Post-LN: `N(x + F(x))`", &|_| Wiring::POST),
    SchemeRow {
        projections: ProjectionStart::DeepNorm,
        ..SchemeRow::new(
            "deeppost",
            "DeepNorm: `N((2L)^¼ · x + F(x))`; projections start as DeepNorm's",
            &|layer| Wiring {
                residual_scale: ((2 * layer.layers) as f64).powf(0.25),
                ..Wiring::POST
            },
        )
    },
    SchemeRow::new("sandwich", "Sandwich-LN: `x + N'(F(N(x)))`", &|_| Wiring::SANDWICH),
    SchemeRow::new(
        "post_pre",
        "Mix-LN: the first `post_num` layers are Post-LN, the rest Pre-LN",
        &Layer::mixed,
    ),
    SchemeRow::new(
        "lns",
        "LayerNorm Scaling as released: Pre-LN whose norm weights start at `1/√l`",
        &|layer| Wiring {
            pre_norm: Some(NormStart {
                weight: layer.inverse_root(),
                ..NormStart::PLAIN
            }),
            ..Wiring::BARE
        },
    ),
    SchemeRow::new(
        "lns_fixed",
        "LayerNorm Scaling as in its paper: `x + F(N(x) / √l)`",
        &|layer| Wiring {
            pre_norm: Some(NormStart {
                factor: layer.inverse_root(),
                ..NormStart::PLAIN
            }),
            ..Wiring::BARE
        },
    ),
    SchemeRow {
        projections: ProjectionStart::ScaledOutput,
        ..SchemeRow::new(
            "scale_pre",
            "Pre-LN; output projections start at `std / √(2L)`",
            &|_| Wiring::PRE,
        )
    },
    SchemeRow {
        projections: ProjectionStart::ScaledOutput,
        ..SchemeRow::new(
            "scale_post_pre",
            "Mix-LN; output projections start at `std / √(2L)` in its Pre-LN layers",
            &Layer::mixed,
        )
    },
    SchemeRow {
        embedding_norm: Some(NormStart::PLAIN),
        ..SchemeRow::new(
            "peri",
            "Peri-LN: `x + N'(F(N(x)))` on a stream that starts as the norm of the embedding",
            &|_| Wiring::SANDWICH,
        )
    },
    SchemeRow::new(
        "prores",
        "Progressive Residual Warmup: `x + min(t / (T·l), 1) · F(N(x))`",
        &|layer| Wiring {
            branch_scale: Some(BranchScaling::Warmup {
                steps: layer.warmup.saturating_mul(layer.index as u64 + 1),
            }),
            ..Wiring::PRE
        },
    ),
    SchemeRow::new("keel", "Keel: `N'(2L · x + F(N(x)))`", &|layer| Wiring {
        post_norm: Some(NormStart::PLAIN),
        residual_scale: (2 * layer.layers) as f64,
        ..Wiring::PRE
    }),
    SchemeRow::new(
        "layerscale",
        "LayerScale: `x + λ ⊙ F(N(x))`, λ trained per channel, from 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 in deeper models",
        &|layer| Wiring {
            branch_scale: Some(BranchScaling::PerChannel {
                start: match layer.layers {
                    ..=18 => 0.1,
                    19..=24 => 1e-5,
                    _ => 1e-6,
                },
            }),
            ..Wiring::PRE
        },
    ),
    SchemeRow::new(
        "rezero",
        "ReZero: `x + a · F(x)`, a trained per sub-layer, from 0",
        &|_| Wiring {
            branch_scale: Some(BranchScaling::Scalar { start: 0.0 }),
            ..Wiring::BARE
        },
    ),
];

/// All that a scheme is.
#[derive(Clone, Copy)]
pub struct SchemeRow {
    /// Its name on the command line and in recipes.
    pub name: &'static str,
    /// What it is, in a line.
    pub doc: &'static str,
    /// The wiring of both sub-layers of a layer.
    pub wiring: &'static (dyn Fn(Layer) -> Wiring + Send + Sync),
    /// The norm on the embedding, where the stream starts, if there is one.
    pub embedding_norm: Option<NormStart>,
    /// How the projections of its sub-layers start.
    pub projections: ProjectionStart,
}

impl SchemeRow {
    /// A scheme without a norm on the embedding whose projections start as usual.
    pub const fn new(
        name: &'static str,
        doc: &'static str,
        wiring: &'static (dyn Fn(Layer) -> Wiring + Send + Sync),
    ) -> Self {
        Self {
            name,
            doc,
            wiring,
            embedding_norm: None,
            projections: ProjectionStart::Normal,
        }
    }
}

/// How the projections of the sub-layers start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProjectionStart {
    /// N(0, 0.02).
    Normal,
    /// N(0, 0.02), but N(0, 0.02 / √(2L)) for the projections that write to the stream (`output`, `down`) in layers with a norm before the
    /// sub-layer.
    ScaledOutput,
    /// Xavier normal: of gain 1 for queries and keys, (8L)^−¼ for the others.
    DeepNorm,
}

/// A layer, as the wiring of a scheme sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its index, from 0.
    pub index: usize,
    /// Number of layers of the model, L.
    pub layers: usize,
    /// Number of Post-LN layers of the mixed schemes.
    pub post_num: usize,
    /// Optimizer steps in which the branches of the first layer grow to their full weight, T.
    pub warmup: u64,
}

impl Layer {
    /// `1/√l`.
    fn inverse_root(self) -> f64 {
        ((self.index + 1) as f64).sqrt().recip()
    }

    /// Post-LN in the first `post_num` layers, Pre-LN in the others.
    fn mixed(self) -> Wiring {
        if self.index < self.post_num {
            Wiring::POST
        } else {
            Wiring::PRE
        }
    }
}

/// A scheme without its gate: one of the rows of this module, or a row of one's own.
#[derive(Clone, Copy)]
pub struct NormScheme(&'static SchemeRow);

/// Why a row can be no scheme.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum OwnSchemeError {
    #[error("`{0}` is a scheme already: a scheme of one's own needs a name of its own")]
    Taken(&'static str),
    #[error("`{0}` is no name for a scheme: `_gpas` at its end means the gate")]
    Gated(&'static str),
    #[error("a scheme of one's own needs a name")]
    Unnamed,
}

impl NormScheme {
    /// Pre-LN.
    pub const PRE: NormScheme = NormScheme::known("pre");
    /// Post-LN.
    pub const POST: NormScheme = NormScheme::known("post");
    /// DeepNorm.
    pub const DEEP_POST: NormScheme = NormScheme::known("deeppost");
    /// Sandwich-LN.
    pub const SANDWICH: NormScheme = NormScheme::known("sandwich");
    /// Mix-LN.
    pub const POST_PRE: NormScheme = NormScheme::known("post_pre");

    /// A row whose name is in the table, which the compiler finds.
    const fn known(name: &str) -> Self {
        let mut index = 0;
        while index < ROWS.len() {
            if same(ROWS[index].name.as_bytes(), name.as_bytes()) {
                return NormScheme(&ROWS[index]);
            }
            index += 1;
        }
        panic!("there is no scheme of that name")
    }

    /// Every scheme of the table of this module.
    pub fn all() -> impl Iterator<Item = NormScheme> {
        ROWS.iter().map(NormScheme)
    }

    /// The scheme of that name in the table of this module.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|scheme| scheme.name() == name)
    }

    /// A scheme of one's own. Configurations are saved with its name, by which they cannot be read again: only those who have the row know
    /// what it stands for.
    ///
    /// Two schemes are equal if they are the same row, so a row should be a `static`, or [leaked](Box::leak) once.
    ///
    /// # Errors
    /// If its name is empty, ends with `_gpas`, or is that of another scheme.
    pub fn own(row: &'static SchemeRow) -> Result<Self, OwnSchemeError> {
        match row.name {
            "" => Err(OwnSchemeError::Unnamed),
            name if name.ends_with(GATED) => Err(OwnSchemeError::Gated(name)),
            name if Self::named(name).is_some() => Err(OwnSchemeError::Taken(name)),
            _ => Ok(Self(row)),
        }
    }

    /// Its name on the command line and in recipes.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// What it is, in a line.
    pub fn doc(self) -> &'static str {
        self.0.doc
    }

    /// The norm on the embedding, where the stream starts, if the scheme has one.
    pub fn embedding_norm(self) -> Option<NormStart> {
        self.0.embedding_norm
    }

    /// How the projections of its sub-layers start.
    pub fn projections(self) -> ProjectionStart {
        self.0.projections
    }

    /// The wiring of both sub-layers of a layer.
    pub fn wiring(self, layer: Layer) -> Wiring {
        (self.0.wiring)(layer)
    }
}

/// Whether two names are one; `==` does not run in constants yet.
const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut index = 0;
    while index < a.len() && index < b.len() {
        if a[index] != b[index] {
            return false;
        }
        index += 1;
    }
    a.len() == b.len()
}

impl PartialEq for NormScheme {
    fn eq(&self, other: &Self) -> bool {
        core::ptr::eq(self.0, other.0)
    }
}

impl Eq for NormScheme {}

impl Hash for NormScheme {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl fmt::Debug for NormScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A normalisation scheme with or without GPAS, written `pre`, `pre_gpas`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scheme {
    /// Where the norms stand.
    pub norm: NormScheme,
    /// Whether each layer has a GPAS gate.
    pub gpas: bool,
}

impl Scheme {
    /// Every scheme, first without and then with GPAS.
    pub fn all() -> impl Iterator<Item = Scheme> {
        [false, true]
            .into_iter()
            .flat_map(|gpas| NormScheme::all().map(move |norm| Scheme { norm, gpas }))
    }
}

impl Default for Scheme {
    /// Pre-LN with GPAS, the paper's main model.
    fn default() -> Self {
        Scheme {
            norm: NormScheme::PRE,
            gpas: true,
        }
    }
}

/// What a name with a gate ends with.
const GATED: &str = "_gpas";

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.norm.name(), if self.gpas { GATED } else { "" })
    }
}

/// A name that is no scheme's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown scheme `{0}`")]
pub struct UnknownScheme(pub String);

impl FromStr for Scheme {
    type Err = UnknownScheme;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let (base, gpas) = match name.strip_suffix(GATED) {
            Some(base) => (base, true),
            None => (name, false),
        };
        match NormScheme::named(base) {
            Some(norm) => Ok(Scheme { norm, gpas }),
            None => Err(UnknownScheme(name.to_string())),
        }
    }
}

impl TryFrom<String> for Scheme {
    type Error = UnknownScheme;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<Scheme> for String {
    fn from(scheme: Scheme) -> Self {
        scheme.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheme(name: &str) -> Scheme {
        name.parse().unwrap()
    }

    /// The wiring of a layer, with 2 Post-LN layers and a warm-up of 100 steps.
    fn wiring(name: &str, index: usize, layers: usize) -> Wiring {
        scheme(name).norm.wiring(Layer {
            index,
            layers,
            post_num: 2,
            warmup: 100,
        })
    }

    #[test]
    fn every_name_reads_back() {
        let names: Vec<String> = Scheme::all().map(|s| s.to_string()).collect();
        assert_eq!(names.len(), 2 * ROWS.len());
        for name in &names {
            assert_eq!(&scheme(name).to_string(), name);
        }
        assert_eq!("pre_gpass".parse::<Scheme>(), Err(UnknownScheme("pre_gpass".into())));
    }

    #[test]
    fn formulas_are_the_designs() {
        let of = |name: &str, index| {
            let wiring = wiring(name, index, 8);
            wiring.formula(Some(wiring.default_gate_place()))
        };
        assert_eq!(of("pre_gpas", 0), "x ← G(x + F(N(x)))");
        assert_eq!(of("sandwich_gpas", 5), "x ← G(x + N(F(N(x))))");
        assert_eq!(of("post_gpas", 0), "x ← N(G(x) + F(x))");
        assert_eq!(of("deeppost_gpas", 0), "x ← N(2.000·G(x) + F(x))");
        assert_eq!(of("post_pre_gpas", 1), "x ← N(G(x) + F(x))");
        assert_eq!(of("post_pre_gpas", 2), "x ← G(x + F(N(x)))");
        assert_eq!(of("lns_fixed_gpas", 3), "x ← G(x + F(N(x)·0.500))");
        assert_eq!(of("peri_gpas", 3), "x ← G(x + N(F(N(x))))");
        assert_eq!(of("prores_gpas", 2), "x ← G(x + min(t/300, 1)·F(N(x)))");
        assert_eq!(of("keel_gpas", 0), "x ← N(16.000·G(x) + F(N(x)))");
        assert_eq!(of("layerscale_gpas", 0), "x ← G(x + λ⊙F(N(x)))");
        assert_eq!(of("rezero_gpas", 0), "x ← G(x + a·F(x))");
        let rezero = wiring("rezero", 0, 8);
        assert_eq!(rezero.formula(Some(GatePlace::AfterModule)), "x ← x + G(a·F(x))");
    }

    #[test]
    fn layer_scale_starts_by_depth() {
        let start = |layers| wiring("layerscale", 0, layers).branch_scale;
        for (layers, expected) in [(18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)] {
            assert_eq!(
                start(layers),
                Some(BranchScaling::PerChannel { start: expected }),
                "{layers} layers"
            );
        }
    }

    #[test]
    fn layer_norm_scaling_starts_at_one_over_the_root_of_the_depth() {
        let norm = |name: &str| wiring(name, 3, 8).pre_norm.unwrap();
        assert_eq!((norm("lns").weight, norm("lns").factor), (0.5, 1.0));
        assert_eq!((norm("lns_fixed").weight, norm("lns_fixed").factor), (1.0, 0.5));
    }

    /// The documentation's table is made of the rows: this fails with the table that belongs there.
    #[test]
    fn the_table_of_the_documentation_is_that_of_the_rows() {
        let mut table = vec![
            "| scheme | what it is | layer 1 of 8 | layer 8 of 8 |".to_string(),
            "|---|---|---|---|".to_string(),
        ];
        table.extend(NormScheme::all().map(|norm| {
            let (name, doc) = (norm.name(), norm.doc());
            let [first, last] = [0, 7].map(|index| {
                let wiring = wiring(name, index, 8);
                wiring.formula(Some(wiring.default_gate_place()))
            });
            format!("| `{name}` | {doc} | `{first}` | `{last}` |")
        }));
        let documented: Vec<&str> = include_str!("scheme.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! "))
            .filter(|line| line.starts_with('|'))
            .collect();
        assert_eq!(documented, table, "it should be:\n//! {}", table.join("\n//! "));
    }

    #[test]
    fn a_scheme_of_ones_own_needs_a_name_of_its_own() {
        static PRE: SchemeRow = SchemeRow::new("pre", "another", &|_| Wiring::BARE);
        static GATE: SchemeRow = SchemeRow::new("mine_gpas", "gated by name", &|_| Wiring::BARE);
        static NONE: SchemeRow = SchemeRow::new("", "without a name", &|_| Wiring::BARE);
        static MINE: SchemeRow = SchemeRow::new("mine", "one's own", &|_| Wiring::BARE);
        assert_eq!(NormScheme::own(&PRE), Err(OwnSchemeError::Taken("pre")));
        assert_eq!(NormScheme::own(&GATE), Err(OwnSchemeError::Gated("mine_gpas")));
        assert_eq!(NormScheme::own(&NONE), Err(OwnSchemeError::Unnamed));
        let norm = NormScheme::own(&MINE).unwrap();
        let text = serde_json::to_string(&Scheme { norm, gpas: true }).unwrap();
        assert_eq!(text, "\"mine_gpas\"");
        let error = serde_json::from_str::<Scheme>(&text).unwrap_err().to_string();
        assert!(error.starts_with("unknown scheme `mine_gpas`"), "{error}");
    }
}
