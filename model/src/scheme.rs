//! The normalisation schemes, as data: which norms a sub-layer has, how its residual is scaled and where its gate sits.
//!
//! Every scheme is one wiring of a sub-layer `F` (attention or MLP) on the residual stream `x`:
//!
//! ```text
//! y = post_norm?( α · [G?](x) + branch_norm?( F( pre_norm?(x) ) ) )        x ← [G?](y)
//! ```
//!
//! | scheme | pre_norm | branch_norm | post_norm | α | GPAS sits on |
//! |---|---|---|---|---|---|
//! | `pre` (Pre-LN) | ● | | | 1 | the stream y |
//! | `lns` (LayerNorm Scaling, as released) | ● (weight starts at 1/√l) | | | 1 | the stream y |
//! | `lns_fixed` (LayerNorm Scaling, as in its paper) | ● (times a fixed 1/√l) | | | 1 | the stream y |
//! | `sandwich` (Sandwich-LN) | ● | ● | | 1 | the stream y |
//! | `post` (Post-LN) | | | ● | 1 | the residual x |
//! | `deeppost` (DeepNorm) | | | ● | (2L)^¼ | the residual x; F still sees the unscaled x |
//! | `post_pre` (Mix-LN) | layers ≥ `post_num` | | layers < `post_num` | 1 | as the layer's kind |
//! | `scale_pre`, `scale_post_pre` | as `pre`, `post_pre`; o and down projections start at std/√(2L), in pre layers only | | | | |
//!
//! `_gpas` after a name adds the gate. `l` counts from 1. Adding a scheme is adding a row to [`NormScheme::wiring`].
//!
//! Sources: GPAS, arXiv 2506.22049; Mix-LN, arXiv 2412.13795; LayerNorm Scaling, arXiv 2502.05795; DeepNorm, arXiv 2203.00555;
//! Sandwich-LN, arXiv 2105.13290.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::gpas::GateSite;

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
}

impl NormScheme {
    /// Every scheme with its name on the command line and in recipes.
    pub const ALL: [(NormScheme, &'static str); 9] = [
        (NormScheme::Pre, "pre"),
        (NormScheme::Post, "post"),
        (NormScheme::DeepPost, "deeppost"),
        (NormScheme::Sandwich, "sandwich"),
        (NormScheme::PostPre, "post_pre"),
        (NormScheme::Lns, "lns"),
        (NormScheme::LnsFixed, "lns_fixed"),
        (NormScheme::ScalePre, "scale_pre"),
        (NormScheme::ScalePostPre, "scale_post_pre"),
    ];

    /// The wiring of both sub-layers of layer `index` (from 0) of `layers`, the first `post_num` of which are Post-LN in the mixed schemes.
    pub fn wiring(self, index: usize, layers: usize, post_num: usize) -> Wiring {
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
        }
    }
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

    /// The wiring as a formula with `N` a norm, `F` the sub-layer and `G` the gate, for people to read.
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
        let branch = gated(GatePlace::AfterModule, normed(self.branch_norm, format!("F({seen})")));
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
        assert_eq!(names.len(), 18);
        for name in &names {
            assert_eq!(&scheme(name).to_string(), name);
        }
        assert_eq!("pre_gpass".parse::<Scheme>(), Err(UnknownScheme("pre_gpass".into())));
    }

    #[test]
    fn formulas_are_the_designs() {
        let of = |name: &str, index| {
            let wiring = scheme(name).norm.wiring(index, 8, 2);
            wiring.formula(Some(wiring.default_gate_place()))
        };
        assert_eq!(of("pre_gpas", 0), "x ← G(x + F(N(x)))");
        assert_eq!(of("sandwich_gpas", 5), "x ← G(x + N(F(N(x))))");
        assert_eq!(of("post_gpas", 0), "x ← N(G(x) + F(x))");
        assert_eq!(of("deeppost_gpas", 0), "x ← N(2.000·G(x) + F(x))");
        assert_eq!(of("post_pre_gpas", 1), "x ← N(G(x) + F(x))");
        assert_eq!(of("post_pre_gpas", 2), "x ← G(x + F(N(x)))");
        assert_eq!(of("lns_fixed_gpas", 3), "x ← G(x + F(N(x)·0.500))");
    }

    #[test]
    fn only_pre_layers_of_a_scaled_scheme_start_small() {
        let small = |name: &str, index| scheme(name).norm.wiring(index, 8, 2).scaled_output;
        assert!(small("scale_pre", 0));
        assert!(!small("scale_post_pre", 1));
        assert!(small("scale_post_pre", 2));
        assert!(!small("pre", 0));
    }

    #[test]
    fn layer_norm_scaling_starts_at_one_over_the_root_of_the_depth() {
        let norm = |name: &str| scheme(name).norm.wiring(3, 8, 2).pre_norm.unwrap();
        assert_eq!((norm("lns").weight, norm("lns").factor), (0.5, 1.0));
        assert_eq!((norm("lns_fixed").weight, norm("lns_fixed").factor), (1.0, 0.5));
    }
}
