#![no_main]

#[path = "../../../host-shm-device/tests/common/clients.rs"]
#[allow(clippy::duplicate_mod, reason = "tests have it too")]
mod clients;
#[path = "../../../host-shm-device/tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| clients::clients(data));
