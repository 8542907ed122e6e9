//! Who computes the matrix products of a device, for whoever reports it.

use std::fmt;

/// Who computes the matrix products of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Products {
    /// NVIDIA's library. CubeCL's kernels compute what it cannot read in place and what it refuses.
    CuBlasLt {
        /// As the library says it, 130100 for 13.1.0.
        version: usize,
        /// Products that it was given in this process.
        done: usize,
        /// Kinds of products, by formats, sizes and layouts, that it refused.
        refused: usize,
    },
    /// CubeCL's kernels.
    CubeCl {
        /// Why NVIDIA's library does not.
        why: Why,
    },
}

/// Why NVIDIA's library does not compute the products of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The program is built without the feature `cublas`.
    NotBuilt,
    /// The device is no card of NVIDIA's, or is reached in another way than CUDA.
    NotCuda,
    /// There is no NVIDIA driver, or no card that it knows.
    NoDriver,
    /// The driver lacks what puts the products in the order of CubeCL's kernels, which came with CUDA 12.5.
    OldDriver {
        /// The CUDA version that the driver is for, 12040 for 12.4.
        version: i32,
    },
    /// The library is not where the system looks for libraries.
    NoLibrary,
    /// The library or the driver refused.
    Refused(String),
}

impl fmt::Display for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CuBlasLt { version, done, refused } => {
                let [major, minor, patch] = [version / 10_000, version / 100 % 100, version % 100];
                write!(
                    f,
                    "cuBLASLt {major}.{minor}.{patch} ({done} products, {refused} kinds refused)"
                )
            }
            Self::CubeCl { why } => write!(f, "CubeCL's kernels ({why})"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBuilt => f.write_str("built without the feature `cublas`"),
            Self::NotCuda => f.write_str("not a CUDA device"),
            Self::NoDriver => f.write_str("no NVIDIA driver that knows a card"),
            Self::OldDriver { version } => write!(
                f,
                "the NVIDIA driver is for CUDA {}.{}, and cuBLASLt is used from 12.5 on",
                version / 1000,
                version / 10 % 100
            ),
            Self::NoLibrary => f.write_str("no libcublasLt among the system's libraries"),
            Self::Refused(error) => write!(f, "cuBLASLt refused: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_who_and_why() {
        let library = |version, done, refused| Products::CuBlasLt { version, done, refused }.to_string();
        assert_eq!(
            library(130_100, 812, 0),
            "cuBLASLt 13.1.0 (812 products, 0 kinds refused)"
        );
        assert_eq!(library(120_805, 0, 3), "cuBLASLt 12.8.5 (0 products, 3 kinds refused)");
        let why = Why::OldDriver { version: 12_040 };
        let line = "CubeCL's kernels (the NVIDIA driver is for CUDA 12.4, and cuBLASLt is used from 12.5 on)";
        assert_eq!(Products::CubeCl { why }.to_string(), line);
    }
}
