//! What this process does with memory.

/// Keeps freed memory for the next step rather than giving it back to the system. A step allocates what the one before it freed, and
/// fresh pages cost a tenth of a step on a CPU. Called once, before anything large is allocated; does nothing where the C library is not
/// GNU's.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: both calls set a number of the allocator, under its own lock.
    unsafe {
        // No allocation comes straight from the system, up to two gigabytes of what is free stays.
        libc::mallopt(libc::M_MMAP_THRESHOLD, libc::c_int::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

/// The largest resident memory of this process so far, in bytes; 0 where the system does not tell.
pub fn peak_memory() -> u64 {
    #[cfg(unix)]
    {
        // SAFETY: the call fills a struct of plain numbers that outlives it.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_SELF, &mut usage);
            usage
        };
        // Bytes on Apple's systems, KiB elsewhere.
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        usage.ru_maxrss.unsigned_abs() * unit
    }
    #[cfg(not(unix))]
    {
        0
    }
}

/// Bytes that this process holds from its allocator, modulo 2³², so that what it grows by is told by [`growth`]; none where the C library is
/// not GNU's. Resident memory would not do: freed memory is [kept](keep_freed_memory), and what leaks would first fill it.
pub fn allocated_memory() -> Option<u32> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: the call reads numbers of the allocator, under its own lock. Its successor with wider numbers is missing in the C
        // libraries of older systems.
        let info = unsafe { libc::mallinfo() };
        Some(info.uordblks.wrapping_add(info.hblkhd).cast_unsigned())
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    {
        None
    }
}

/// From one [`allocated_memory`] to a later one, of less than 2 GiB.
pub fn growth(before: u32, after: u32) -> i32 {
    after.wrapping_sub(before).cast_signed()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn peak_memory_sees_an_allocation() {
        keep_freed_memory();
        let before = peak_memory();
        let block = std::hint::black_box(vec![1u8; 256 << 20]);
        let after = peak_memory();
        drop(block);
        assert!(after >= 256 << 20 && after >= before, "{before} then {after}");
        if cfg!(target_env = "gnu") {
            what_is_held_shows();
        }
    }

    /// Memory that was freed is not counted, whichever thread had allocated it. Both checks are one test, so that their large blocks do not
    /// overlap; what the other tests allocate meanwhile is small beside them.
    fn what_is_held_shows() {
        let held = || allocated_memory().expect("a GNU C library");
        let block = || std::hint::black_box(vec![1u8; 512 << 20]);
        let before = held();
        let kept = std::thread::spawn(block).join().expect("room for a block");
        let grown = growth(before, held());
        assert!((384 << 20..640 << 20).contains(&grown), "{grown}");
        drop(kept);
        drop(block());
        let grown = growth(before, held());
        assert!(grown < 128 << 20, "{grown}");
        assert_eq!(growth(u32::MAX, 4), 5);
    }

    /// Touching freed memory again takes no fresh pages.
    #[cfg(target_env = "gnu")]
    #[test]
    fn freed_memory_is_kept() {
        let faults = || {
            // SAFETY: as in `peak_memory`.
            unsafe {
                let mut usage: libc::rusage = std::mem::zeroed();
                libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
                usage.ru_minflt
            }
        };
        keep_freed_memory();
        let block = || drop(std::hint::black_box(vec![1u8; 16 << 20]));
        block();
        let before = faults();
        block();
        // 4096 pages, were they fresh.
        assert!(faults() - before < 400, "{} pages", faults() - before);
    }
}
