//! How many kernels a training step launches on a GPU's backend, which must be built in: `cargo test --release -p gpas-tests --features
//! gpas/vulkan --test launches`.
//!
//! A file of its own, since a process decides before it opens a device whether its launches are told.

use gpas::benchmark::Candidate;
use gpas::benchmark::launches::{LaunchCount, LaunchReport, Launched};
use gpas_train::backend::{BackendChoice, BackendName, Telling};
use gpas_train::recipe::RecipeOptions;

/// The most that a layer of `pre_gpas` launches, forward and backward. In tensor operations, fused by Burn, it was 43 and 69 to 91.
const MOST: [i64; 2] = [20, 45];
/// The most that a step of 12 layers launches, those of `130m`. On an H100 it was some 4,900.
const MOST_OF_A_STEP: i64 = 1100;

/// Forward, every layer launches the same; the parts are the whole; and no layer launches more than it may.
#[test]
fn a_layer_and_a_step_launch_few_kernels() {
    let is_of_a_gpu = |name: &&BackendName| name.is_compiled_in() && !name.is_cpu();
    let Some(&name) = BackendName::ALL.iter().find(is_of_a_gpu) else {
        return println!("skipped: no GPU's backend is built in");
    };
    let launched = Launched::listen().expect("no other logger");
    let selected = match BackendChoice::Named(name, 0).select_telling(Telling::Launches) {
        Ok(selected) => selected,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            return println!("skipped: no {name} device");
        }
    };
    let report = |layers: usize| -> LaunchReport {
        let options = RecipeOptions {
            preset: Some("nano".into()),
            scheme: Some("pre_gpas".into()),
            set: ["train.batch=2", "data.seq_len=16", "model.vocab=64"]
                .map(String::from)
                .into_iter()
                .chain([format!("model.layers={layers}")])
                .collect(),
            ..Default::default()
        };
        let model = Candidate::new(&options, 64).expect("a recipe");
        let launched = launched.clone();
        let found = selected.run(LaunchCount { model, launched });
        found.expect("it is built in").expect("launches are told")
    };
    let [two, three] = [report(2), report(3)];
    println!("{three:?}");
    assert_eq!(three.forward - two.forward, two.layer_forward.unwrap());
    assert_eq!(three.layer_forward, two.layer_forward);
    assert_eq!(three.forward + three.head + three.backward + three.update, three.step);
    let named: u64 = three.kernels.iter().map(|(_, kernel)| kernel.launches).sum();
    assert_eq!(named.cast_signed(), three.step);
    let layer = [three.layer_forward, three.layer_backward].map(Option::unwrap_or_default);
    assert!(layer[0] > 0 && layer[0] <= MOST[0], "{layer:?} of {MOST:?}");
    assert!(layer[1] > 0 && layer[1] <= MOST[1], "{layer:?} of {MOST:?}");
    let twelve = three.step + 9 * (three.step - two.step);
    println!("a step of 12 layers: {twelve}");
    assert!(twelve <= MOST_OF_A_STEP, "{twelve} of {MOST_OF_A_STEP}");
}
