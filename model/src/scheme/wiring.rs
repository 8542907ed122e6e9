//! What stands around a sub-layer: its norms, what scales its branch and its residual, where its gate sits, and all of that as a formula.

use serde::{Deserialize, Serialize};
use strum::VariantNames;

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

impl BranchScaling {
    /// Size and initial value of what is trained of it, on a stream of width `hidden`.
    pub fn trained(self, hidden: usize) -> Option<(usize, f64)> {
        match self {
            BranchScaling::Warmup { .. } => None,
            BranchScaling::Scalar { start } => Some((1, start)),
            BranchScaling::PerChannel { start } => Some((hidden, start)),
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

/// Where a norm stands around a sub-layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NormPlace {
    /// Before the sub-layer.
    Pre,
    /// On what the sub-layer returns.
    Branch,
    /// On the sum of residual and branch.
    Post,
}

impl NormPlace {
    /// All of them, in the order in which a wiring comes to them.
    pub const ALL: [NormPlace; 3] = [NormPlace::Pre, NormPlace::Branch, NormPlace::Post];
}

/// What stands around a sub-layer.
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
}

impl Wiring {
    /// `y = x + F(x)`.
    pub const BARE: Wiring = Wiring {
        pre_norm: None,
        branch_norm: None,
        branch_scale: None,
        post_norm: None,
        residual_scale: 1.0,
    };

    /// `y = x + F(N(x))`.
    pub const PRE: Wiring = Wiring {
        pre_norm: Some(NormStart::PLAIN),
        ..Wiring::BARE
    };

    /// `y = N(x + F(x))`.
    pub const POST: Wiring = Wiring {
        post_norm: Some(NormStart::PLAIN),
        ..Wiring::BARE
    };

    /// `y = x + N'(F(N(x)))`.
    pub const SANDWICH: Wiring = Wiring {
        branch_norm: Some(NormStart::PLAIN),
        ..Wiring::PRE
    };

    /// The norm at a place.
    pub fn norm(&self, place: NormPlace) -> Option<NormStart> {
        match place {
            NormPlace::Pre => self.pre_norm,
            NormPlace::Branch => self.branch_norm,
            NormPlace::Post => self.post_norm,
        }
    }

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
