//! Whether this machine has what products by cuBLASLt need. Every library is asked for before it is used, since cudarc panics without.

use cudarc::cublaslt::sys as lt;
use cudarc::driver::{result, sys};

use crate::products::Why;

/// Records an event of all that was given to a context, or lets what a context is given from now on wait for an event.
pub(crate) type OnContext = unsafe extern "C" fn(sys::CUcontext, sys::CUevent) -> sys::CUresult;

/// The first driver with [`Order`].
const FIRST_DRIVER: i32 = 12_050;

/// Two functions of the driver that put work on a stream of one's own between two works on streams that one does not know.
///
/// They are looked up here and not called through cudarc, which has them only when it is compiled beside a CUDA of at least their age.
#[derive(Clone, Copy)]
pub(crate) struct Order {
    pub(crate) record: OnContext,
    pub(crate) wait: OnContext,
}

/// What a machine has.
pub(crate) struct Machine<O> {
    /// The CUDA version that the driver is for; none if no driver knows a card.
    pub(crate) driver: Option<i32>,
    /// None if the driver is too old for it.
    pub(crate) order: Option<O>,
    /// The version of cuBLASLt.
    pub(crate) library: Option<usize>,
}

impl<O> Machine<O> {
    /// The version of cuBLASLt and what puts it in order, or why it cannot be used.
    pub(crate) fn usable(self) -> Result<(usize, O), Why> {
        let version = self.driver.ok_or(Why::NoDriver)?;
        let order = self.order.filter(|_| version >= FIRST_DRIVER);
        let order = order.ok_or(Why::OldDriver { version })?;
        Ok((self.library.ok_or(Why::NoLibrary)?, order))
    }
}

impl Machine<Order> {
    pub(crate) fn here() -> Self {
        let driver = driver();
        Self {
            driver,
            order: driver.and_then(|_| order()),
            library: driver.and_then(|_| library()),
        }
    }
}

fn driver() -> Option<i32> {
    // SAFETY: loading the driver's library runs its initialisers, which is what every CUDA program does.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    result::init().ok()?;
    result::device::get_count().ok().filter(|count| *count > 0)?;
    let mut version = 0;
    // SAFETY: the library is there, and `version` outlives the call that writes it.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().ok()?;
    Some(version)
}

/// Only after [`driver`] has found one.
fn order() -> Option<Order> {
    // SAFETY: the library is there, and both functions have had this signature since they exist. It is never unloaded, so the addresses stay.
    unsafe {
        let library = sys::culib();
        Some(Order {
            record: *library.get::<OnContext>(b"cuCtxRecordEvent".as_slice()).ok()?,
            wait: *library.get::<OnContext>(b"cuCtxWaitEvent".as_slice()).ok()?,
        })
    }
}

fn library() -> Option<usize> {
    // SAFETY: loading the library runs its initialisers, as for every program that is linked with it; its version needs no handle.
    unsafe { lt::is_culib_present().then(|| lt::cublasLtGetVersion()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable(driver: Option<i32>, order: bool, library: Option<usize>) -> Result<usize, Why> {
        let order = order.then_some(());
        let machine = Machine { driver, order, library };
        machine.usable().map(|(version, ())| version)
    }

    #[test]
    fn the_library_is_used_where_everything_is_there() {
        assert_eq!(usable(Some(13_000), true, Some(130_100)), Ok(130_100));
        assert_eq!(usable(Some(12_050), true, Some(120_500)), Ok(120_500));
    }

    #[test]
    fn what_is_missing_is_said() {
        assert_eq!(usable(None, false, None), Err(Why::NoDriver));
        assert_eq!(
            usable(Some(12_040), false, Some(120_400)),
            Err(Why::OldDriver { version: 12_040 })
        );
        assert_eq!(
            usable(Some(12_040), true, Some(120_400)),
            Err(Why::OldDriver { version: 12_040 })
        );
        assert_eq!(
            usable(Some(12_080), false, Some(120_800)),
            Err(Why::OldDriver { version: 12_080 })
        );
        assert_eq!(usable(Some(12_080), true, None), Err(Why::NoLibrary));
    }

    #[test]
    fn a_machine_without_a_driver_is_no_panic() {
        let machine = Machine::here();
        if machine.driver.is_none() {
            assert_eq!(machine.usable().err(), Some(Why::NoDriver));
        }
    }
}
