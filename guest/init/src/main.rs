//! PID 1 of every guest, from the first root filesystem to the end.
//!
//! ```text
//!   initramfs: first mounts -> modules -> disk -> envd into it -> disk becomes the root
//!   root:      mounts, ids, settings, network -> envd, for ever: reap orphans, start it again when it ends
//!   SIGTERM, SIGINT, SIGPWR, or a step that fails: power off
//! ```
//!
//! It is started once, as `/init` of the initramfs that `builder` writes, and goes on as the same process after the switch
//! of roots: a root filesystem needs nothing of ours in it. Also the guest daemon comes with the initramfs and is put into
//! the root when that has another one, so a disk of any age gets the daemon of the node it boots on.
//!
//! A guest normally boots once, when its template is built, and is restored from a snapshot ever after. The addresses and
//! the shape of the network are `network`'s; what the daemon and a root filesystem may rely on is the guest contract.
//!
//! One thread. It never ends by itself: the kernel would panic. What goes wrong is a line on the console, beginning with
//! `hearth-init`, and then the power goes off, so that whoever waits for the guest learns it at once.

#![forbid(unsafe_code)]

mod console;
mod error;
mod identity;
mod modules;
mod mounts;
mod network;
mod power;
mod root;
mod settings;
mod supervise;

use std::convert::Infallible;

use console::say;
use error::Error;

fn main() {
    // Before anything can fail: the driver's proof of an accelerator waits for this line.
    say("up");
    if std::process::id() != 1 {
        say("this is PID 1 of a guest, to be started by its kernel");
        std::process::exit(2);
    }
    let Err(error) = run();
    console::complain("cannot go on", &error);
    power::off();
}

fn run() -> Result<Infallible, Error> {
    mounts::first()?;
    modules::load()?;
    root::switch()?;
    mounts::rest()?;
    identity::overlay();
    settings::apply()?;
    network::configure()?;
    supervise::forever()
}
