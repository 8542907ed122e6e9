//! The normalisation schemes, as data: which norms a sub-layer has, how its residual is scaled and where its gate sits.
//!
//! Every scheme is one wiring of a sub-layer `F` (attention or MLP) on the residual stream `x`:
//!
//! ```text
//! y = post_norm?( α · [G?](x) + branch_scale? · branch_norm?( F( pre_norm?(x) ) ) )        x ← [G?](y)
//! ```
//!
//! | scheme | pre_norm | branch_norm | branch_scale | post_norm | α | GPAS sits on |
//! |---|---|---|---|---|---|---|
//! | `pre` (Pre-LN) | ● | | | | 1 | the stream y |
//! | `lns` (LayerNorm Scaling, as released) | ● (weight starts at 1/√l) | | | | 1 | the stream y |
//! | `lns_fixed` (LayerNorm Scaling, as in its paper) | ● (times a fixed 1/√l) | | | | 1 | the stream y |
//! | `sandwich` (Sandwich-LN) | ● | ● | | | 1 | the stream y |
//! | `peri` (Peri-LN) | ● | ● | | | 1 | the stream y; one more norm stands on the embedding |
//! | `post` (Post-LN) | | | | ● | 1 | the residual x |
//! | `deeppost` (DeepNorm) | | | | ● | (2L)^¼ | the residual x; F still sees the unscaled x |
//! | `keel` (Keel) | ● | | | ● | 2L | the residual x; F still sees the unscaled x |
//! | `post_pre` (Mix-LN) | layers ≥ `post_num` | | | layers < `post_num` | 1 | as the layer's kind |
//! | `scale_pre`, `scale_post_pre` | as `pre`, `post_pre`; o and down projections start at std/√(2L), in pre layers only | | | | | |
//! | `prores` (Progressive Residual Warmup) | ● | | min(t / (T·l), 1) | | 1 | the stream y |
//! | `layerscale` (LayerScale) | ● | | trained, one per channel, from [0.1, 1e-5 or 1e-6](NormScheme::wiring) | | 1 | the stream y |
//! | `rezero` (ReZero) | | | trained, one number, from 0 | | 1 | the stream y |
//!
//! `_gpas` after a name adds the gate. `l` counts from 1, `L` is the number of layers, `t` that of the optimizer steps done (see
//! [`Progress`](crate::Progress)), `T` the configuration's `residual_warmup`. The final norm before the head is part of every scheme.
//! Adding a scheme is adding a row to [`NormScheme::wiring`].
//!
//! Sources: GPAS, arXiv 2506.22049; Mix-LN, arXiv 2412.13795; LayerNorm Scaling, arXiv 2502.05795; DeepNorm, arXiv 2203.00555;
//! Sandwich-LN, arXiv 2105.13290; Peri-LN, arXiv 2502.02732; Keel, arXiv 2601.19895; ProRes, arXiv 2603.05369; LayerScale (CaiT),
//! arXiv 2103.17239; ReZero, arXiv 2003.04887.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};
use strum::VariantNames;

/// Where normalisation stands around each sub-layer (see the table of this module).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormScheme {
    /// Pre-LN: `x + F(N(x))`.
    Pre,
    /// Post-LN: `N(x + F(x))`.
    Post,
    /// DeepNorm: `N((2L)^¼ · x + F(x))`.
    DeepPost,
    /// Sandwich-LN: `x + N'(F(N(x)))`.
    Sandwich,
    /// Mix-LN: the first `post_num` layers are Post-LN, the rest Pre-LN.
    PostPre,
    /// LayerNorm Scaling as released: Pre-LN whose norm weights start at `1/√l`.
    Lns,
    /// LayerNorm Scaling as published: `x + F(N(x) / √l)`.
    LnsFixed,
    /// Pre-LN with output projections that start at `std / √(2L)`.
    ScalePre,
    /// Mix-LN with output projections that start at `std / √(2L)` in its Pre-LN layers.
    ScalePostPre,
    /// Peri-LN (arXiv 2502.02732): `x + N'(F(N(x)))` on a stream that starts as the norm of the embedding.
    Peri,
    /// Progressive Residual Warmup (arXiv 2603.05369): `x + min(t / (T·l), 1) · F(N(x))` after t optimizer steps.
    ProRes,
    /// Keel (arXiv 2601.19895): `N'(2L · x + F(N(x)))`, 2L being the number of sub-layers.
    Keel,
    /// LayerScale (arXiv 2103.17239): `x + λ ⊙ F(N(x))` with one trained λ per channel.
    LayerScale,
    /// ReZero (arXiv 2003.04887): `x + a · F(x)` with one trained a per sub-layer, from 0.
    ReZero,
}

impl NormScheme {
    /// Every scheme with its name on the command line and in recipes.
    pub const ALL: [(NormScheme, &'static str); 14] = [
        (NormScheme::Pre, "pre"),
        (NormScheme::Post, "post"),
        (NormScheme::DeepPost, "deeppost"),
        (NormScheme::Sandwich, "sandwich"),
        (NormScheme::PostPre, "post_pre"),
        (NormScheme::Lns, "lns"),
        (NormScheme::LnsFixed, "lns_fixed"),
        (NormScheme::ScalePre, "scale_pre"),
        (NormScheme::ScalePostPre, "scale_post_pre"),
        (NormScheme::Peri, "peri"),
        (NormScheme::ProRes, "prores"),
        (NormScheme::Keel, "keel"),
        (NormScheme::LayerScale, "layerscale"),
        (NormScheme::ReZero, "rezero"),
    ];

    /// The norm on the embedding, where the stream starts, if the scheme has one.
    pub fn embedding_norm(self) -> Option<NormStart> {
        (self == NormScheme::Peri).then_some(NormStart::PLAIN)
    }

    /// The wiring of both sub-layers of layer `index` (from 0) of `layers`. In the mixed schemes the first `post_num` layers are Post-LN; in
    /// `prores` the branches of layer l (from 1) grow for `warmup · l` steps.
    ///
    /// LayerScale starts as its paper has it: at 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 in deeper models.
    pub fn wiring(self, index: usize, layers: usize, post_num: usize, warmup: u64) -> Wiring {
        let depth = ((index + 1) as f64).sqrt().recip();
        let deep = ((2 * layers) as f64).powf(0.25);
        let pre = Wiring {
            pre_norm: Some(NormStart::PLAIN),
            ..Wiring::BARE
        };
        let post = Wiring {
            post_norm: Some(NormStart::PLAIN),
            ..Wiring::BARE
        };
        let mixed = if index < post_num { post } else { pre };
        let scaled = |wiring: Wiring| Wiring {
            scaled_output: wiring.pre_norm.is_some(),
            ..wiring
        };
        match self {
            NormScheme::Pre => pre,
            NormScheme::Post => post,
            NormScheme::DeepPost => Wiring {
                residual_scale: deep,
                ..post
            },
            NormScheme::Sandwich => Wiring {
                branch_norm: Some(NormStart::PLAIN),
                ..pre
            },
            NormScheme::PostPre => mixed,
            NormScheme::Lns => Wiring {
                pre_norm: Some(NormStart {
                    weight: depth,
                    ..NormStart::PLAIN
                }),
                ..Wiring::BARE
            },
            NormScheme::LnsFixed => Wiring {
                pre_norm: Some(NormStart {
                    factor: depth,
                    ..NormStart::PLAIN
                }),
                ..Wiring::BARE
            },
            NormScheme::ScalePre => scaled(pre),
            NormScheme::ScalePostPre => scaled(mixed),
            NormScheme::Peri => NormScheme::Sandwich.wiring(index, layers, post_num, warmup),
            NormScheme::ProRes => Wiring {
                branch_scale: Some(BranchScaling::Warmup {
                    steps: warmup.saturating_mul(index as u64 + 1),
                }),
                ..pre
            },
            NormScheme::Keel => Wiring {
                post_norm: Some(NormStart::PLAIN),
                residual_scale: (2 * layers) as f64,
                ..pre
            },
            NormScheme::LayerScale => Wiring {
                branch_scale: Some(BranchScaling::PerChannel {
                    start: match layers {
                        ..=18 => 0.1,
                        19..=24 => 1e-5,
                        _ => 1e-6,
                    },
                }),
                ..pre
            },
            NormScheme::ReZero => Wiring {
                branch_scale: Some(BranchScaling::Scalar { start: 0.0 }),
                ..Wiring::BARE
            },
        }
    }
}

/// What multiplies a branch as it is added to the residual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BranchScaling {
    /// `min(t / steps, 1)` after t optimizer steps; not trained.
    Warmup {
        /// When the branch has its full weight.
        steps: u64,
    },
    /// One trained number.
    Scalar {
        /// Its initial value.
        start: f64,
    },
    /// One trained number for each channel of the stream.
    PerChannel {
        /// Initial value of each of them.
        start: f64,
    },
}

/// How an RMSNorm starts and what it multiplies its output by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormStart {
    /// Initial value of every entry of the trainable weight.
    pub weight: f64,
    /// Fixed factor on the output.
    pub factor: f64,
}

impl NormStart {
    /// Weight 1, no factor.
    pub const PLAIN: NormStart = NormStart {
        weight: 1.0,
        factor: 1.0,
    };
}

/// One row of the table for one layer: what stands around a sub-layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wiring {
    /// Norm of what the sub-layer sees.
    pub pre_norm: Option<NormStart>,
    /// Norm of what the sub-layer returns.
    pub branch_norm: Option<NormStart>,
    /// What multiplies the branch after that.
    pub branch_scale: Option<BranchScaling>,
    /// Norm of the sum.
    pub post_norm: Option<NormStart>,
    /// α, the factor on the residual.
    pub residual_scale: f64,
    /// Whether the sub-layer's output projection starts at `std / √(2L)`.
    pub scaled_output: bool,
}

impl Wiring {
    /// `y = x + F(x)`.
    const BARE: Wiring = Wiring {
        pre_norm: None,
        branch_norm: None,
        branch_scale: None,
        post_norm: None,
        residual_scale: 1.0,
        scaled_output: false,
    };

    /// The place where the paper puts GPAS: on the residual where the sum is normalised, else on the stream.
    pub fn default_gate_place(&self) -> GatePlace {
        if self.post_norm.is_some() {
            GatePlace::Residual
        } else {
            GatePlace::Stream
        }
    }

    /// The place of the gate for a configured site, if this wiring has it (`after_norm` needs a norm before the sub-layer).
    pub fn gate_place(&self, site: GateSite) -> Option<GatePlace> {
        match site {
            GateSite::Default => Some(self.default_gate_place()),
            GateSite::Before => Some(GatePlace::Before),
            GateSite::AfterNorm => self.pre_norm.map(|_| GatePlace::AfterNorm),
            GateSite::AfterModule => Some(GatePlace::AfterModule),
        }
    }

    /// The wiring as a formula for people to read: `N` is a norm, `F` the sub-layer, `G` the gate; of the branch scales, `a` is trained,
    /// `λ` is trained per channel, and `t` counts optimizer steps.
    pub fn formula(&self, gate: Option<GatePlace>) -> String {
        let gated = |place: GatePlace, inner: String| match gate {
            Some(at) if at == place => format!("G({inner})"),
            _ => inner,
        };
        let normed = |norm: Option<NormStart>, inner: String| match norm {
            None => inner,
            Some(start) if start.factor != 1.0 => format!("N({inner})·{:.3}", start.factor),
            Some(_) => format!("N({inner})"),
        };
        let x = gated(GatePlace::Before, "x".into());
        let seen = gated(GatePlace::AfterNorm, normed(self.pre_norm, x.clone()));
        let branch = normed(self.branch_norm, format!("F({seen})"));
        let branch = match self.branch_scale {
            None => branch,
            Some(BranchScaling::Warmup { steps }) => format!("min(t/{steps}, 1)·{branch}"),
            Some(BranchScaling::Scalar { .. }) => format!("a·{branch}"),
            Some(BranchScaling::PerChannel { .. }) => format!("λ⊙{branch}"),
        };
        let branch = gated(GatePlace::AfterModule, branch);
        let residual = gated(GatePlace::Residual, x);
        let residual = if self.residual_scale == 1.0 {
            residual
        } else {
            format!("{:.3}·{residual}", self.residual_scale)
        };
        let sum = normed(self.post_norm, format!("{residual} + {branch}"));
        format!("x ← {}", gated(GatePlace::Stream, sum))
    }
}

/// Where the gate stands in a layer. All but the default are the paper's ablations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, VariantNames)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum GateSite {
    /// As the scheme's row says: the stream in pre-like layers, the residual in post-like ones.
    #[default]
    Default,
    /// `z = G(x)`, then the scheme's line on `z`.
    Before,
    /// On what the sub-layer sees; needs a scheme with a norm before the sub-layer in every layer.
    AfterNorm,
    /// On the branch as it is added to the residual.
    AfterModule,
}

/// Where in a wiring the gate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatePlace {
    /// `z = G(x)`, then the scheme's line on `z`.
    Before,
    /// On what the sub-layer sees.
    AfterNorm,
    /// On the branch as it is added to the residual.
    AfterModule,
    /// On the residual `x` alone; the sub-layer still sees `x`.
    Residual,
    /// On the sum, the stream that the next sub-layer sees.
    Stream,
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
            .flat_map(|gpas| NormScheme::ALL.map(|(norm, _)| Scheme { norm, gpas }))
    }
}

impl Default for Scheme {
    /// Pre-LN with GPAS, the paper's main model.
    fn default() -> Self {
        Scheme {
            norm: NormScheme::Pre,
            gpas: true,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NormScheme::ALL
            .iter()
            .find(|(norm, _)| *norm == self.norm)
            .map_or("", |(_, name)| name);
        write!(f, "{name}{}", if self.gpas { "_gpas" } else { "" })
    }
}

/// A name that is no scheme's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown scheme `{0}`")]
pub struct UnknownScheme(pub String);

impl FromStr for Scheme {
    type Err = UnknownScheme;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let (base, gpas) = match name.strip_suffix("_gpas") {
            Some(base) => (base, true),
            None => (name, false),
        };
        NormScheme::ALL
            .iter()
            .find(|(_, known)| *known == base)
            .map(|(norm, _)| Scheme { norm: *norm, gpas })
            .ok_or_else(|| UnknownScheme(name.to_string()))
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

    #[test]
    fn every_name_reads_back() {
        let names: Vec<String> = Scheme::all().map(|s| s.to_string()).collect();
        assert_eq!(names.len(), 28);
        for name in &names {
            assert_eq!(&scheme(name).to_string(), name);
        }
        assert_eq!("pre_gpass".parse::<Scheme>(), Err(UnknownScheme("pre_gpass".into())));
    }

    #[test]
    fn formulas_are_the_designs() {
        let of = |name: &str, index| {
            let wiring = scheme(name).norm.wiring(index, 8, 2, 100);
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
        let rezero = scheme("rezero").norm.wiring(0, 8, 2, 100);
        assert_eq!(rezero.formula(Some(GatePlace::AfterModule)), "x ← x + G(a·F(x))");
    }

    #[test]
    fn layer_scale_starts_by_depth() {
        let start = |layers| scheme("layerscale").norm.wiring(0, layers, 0, 0).branch_scale;
        for (layers, expected) in [(18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)] {
            assert_eq!(
                start(layers),
                Some(BranchScaling::PerChannel { start: expected }),
                "{layers} layers"
            );
        }
    }

    #[test]
    fn only_pre_layers_of_a_scaled_scheme_start_small() {
        let small = |name: &str, index| scheme(name).norm.wiring(index, 8, 2, 100).scaled_output;
        assert!(small("scale_pre", 0));
        assert!(!small("scale_post_pre", 1));
        assert!(small("scale_post_pre", 2));
        assert!(!small("pre", 0));
    }

    #[test]
    fn layer_norm_scaling_starts_at_one_over_the_root_of_the_depth() {
        let norm = |name: &str| scheme(name).norm.wiring(3, 8, 2, 100).pre_norm.unwrap();
        assert_eq!((norm("lns").weight, norm("lns").factor), (0.5, 1.0));
        assert_eq!((norm("lns_fixed").weight, norm("lns_fixed").factor), (1.0, 0.5));
    }
}
