//! The cellar: raw system calls behind safe doors. All the unsafe code of the
//! project is here.

pub mod child;
pub mod cli;
pub mod daemon;
pub mod engine;
pub mod guest;
