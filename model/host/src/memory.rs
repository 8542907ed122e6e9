//! Buffers that are written before they are read, without first being filled with zeros by one thread while the others wait.

use std::mem::MaybeUninit;

/// Numbers that are yet to be written.
pub(crate) type Blank<E = f32> = [MaybeUninit<E>];

/// A buffer of `length` numbers, each of which `write` must write.
///
/// # Safety
/// `write` leaves no number unwritten.
pub(crate) unsafe fn written<E: Copy>(length: usize, write: impl FnOnce(&mut Blank<E>)) -> Vec<E> {
    let mut values: Vec<E> = Vec::with_capacity(length);
    prefer_large_pages(values.spare_capacity_mut());
    write(&mut values.spare_capacity_mut()[..length]);
    // SAFETY: as many were written, as the caller promises.
    unsafe { values.set_len(length) };
    values
}

/// The numbers of a buffer, all of which have been written.
///
/// # Safety
/// Every number has been written.
pub(crate) unsafe fn assume_written<E: Copy>(blank: &mut Blank<E>) -> &mut [E] {
    // SAFETY: `MaybeUninit<E>` lies in memory as `E` does, and every one has been written, as the caller promises.
    unsafe { &mut *(std::ptr::from_mut(blank) as *mut [E]) }
}

/// Numbers as a place for others.
///
/// # Safety
/// Nothing is written there but numbers: `MaybeUninit::uninit()` would leave the slice without a value.
pub(crate) unsafe fn as_blank<E: Copy>(values: &mut [E]) -> &mut Blank<E> {
    // SAFETY: `MaybeUninit<E>` lies in memory as `E` does, and only numbers are written there, as the caller promises.
    unsafe { &mut *(std::ptr::from_mut(values) as *mut Blank<E>) }
}

/// A buffer of `length` numbers to write into and read from again and again.
pub(crate) fn scratch(length: usize) -> Vec<MaybeUninit<f32>> {
    // `vec![MaybeUninit::uninit(); length]` writes to all of it where the compiler does not see through it.
    let mut values = Box::new_uninit_slice(length).into_vec();
    prefer_large_pages(&mut values);
    values
}

/// Asks the system for pages of 2 MiB behind a large buffer: fewer have to be found for it, and fewer addresses
/// translated in every product.
fn prefer_large_pages<E>(values: &mut Blank<E>) {
    #[cfg(target_os = "linux")]
    {
        const LARGE: usize = 2 << 20;
        let bytes = size_of_val(values);
        if bytes < 2 * LARGE {
            return;
        }
        let start = values.as_mut_ptr() as usize;
        let first = start.next_multiple_of(LARGE);
        let end = (start + bytes) / LARGE * LARGE;
        // SAFETY: the range lies within the buffer, and the advice changes neither what is in it nor who owns it. It may be refused.
        unsafe {
            libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = values;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        // SAFETY: every number is written.
        let values = unsafe {
            written(1000, |out| {
                out.iter_mut().enumerate().for_each(|(i, out)| {
                    out.write(i as f32);
                })
            })
        };
        assert!(values.iter().enumerate().all(|(i, value)| *value == i as f32));
        let mut scratch = scratch(3);
        scratch.fill(MaybeUninit::new(2.0));
        // SAFETY: filled above.
        assert_eq!(unsafe { assume_written(&mut scratch) }, [2.0; 3]);
        let mut numbers = [1.0, 2.0];
        // SAFETY: a number is written.
        let blank = unsafe { as_blank(&mut numbers) };
        blank[1].write(3.0);
        assert_eq!(numbers, [1.0, 3.0]);
    }
}
