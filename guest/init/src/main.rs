//! PID 1 of every guest, from the first root file system to the power-off.
//!
//! ```text
//!   initramfs: first mounts -> modules -> disk -> envd into it -> disk becomes the root
//!   root:      mounts, ids, settings, network -> envd and services, forever: reap orphans, restart what exits
//!   SIGTERM, SIGINT, SIGPWR, or a step that fails: power off
//! ```
//!
//! It is started once, as `/init` of the initramfs that `builder` writes, and remains the same process after the switch
//! of roots: a root file system needs no file of Hearth. The guest daemon is part of the initramfs too and is installed
//! in the root if that has another one, so that a disk of any age gets the daemon of the node on which it boots. The same
//! holds for the interpreter, if the root declares its service. A template declares services by files ([`declarations`]).
//!
//! A guest normally boots once, when its template is built, and is restored from a snapshot later. The addresses and
//! the layout of the network are defined in `network`; the guest contract defines the guarantees to the daemon and the
//! root file system.
//!
//! One thread. It never exits, because the kernel would panic. An error is printed as a line on the console, starting
//! with `hearth-init`, and then the guest powers off, so that the host detects it immediately.

#![forbid(unsafe_code)]

mod console;
mod declarations;
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

use console::print_line;
use error::Error;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    if std::process::id() != 1 && arguments.next().is_some_and(|first| first == declarations::ENTER) {
        let Err(error) = declarations::enter(arguments);
        console::print_error("a service does not start", &error);
        // As a shell does when it does not find a program.
        std::process::exit(127);
    }
    // Before any step that can fail: the driver waits for this line as the proof of a working accelerator.
    print_line("up");
    if std::process::id() != 1 {
        print_line("must be started by a guest's kernel as PID 1");
        std::process::exit(2);
    }
    let Err(error) = run();
    console::print_error("cannot go on", &error);
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
    supervise::run()
}
