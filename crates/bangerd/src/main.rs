//! `bangerd`: reads its arguments and runs the errand they name.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use bangerd::{Arguments, Errand};

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(why) => {
            eprint!("error: {why}\n\n{}", bangerd::HELP);
            return ExitCode::from(2);
        }
    };
    match arguments.errand {
        Errand::Serve => bangerd::serve(arguments),
        Errand::Doctor => bangerd::print_doctor(&arguments.overrides),
        Errand::VmDefaults => bangerd::print_vm_defaults(&arguments.overrides),
        Errand::ListSeams => bangerd::print_seams(),
        Errand::WriteImage => bangerd::write_image(&arguments.image_task),
        Errand::MakeBundle => bangerd::make_bundle(&arguments.bundle),
        Errand::Version => bangerd::print(&bangerd::version()),
        Errand::Help => bangerd::print(bangerd::HELP.trim_end()),
    }
}
