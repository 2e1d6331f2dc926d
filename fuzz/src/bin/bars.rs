#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmshm_vmm::hostile::bars(data));
