//! stub
pub mod child;
pub mod cli;
pub mod daemon;
pub mod engine;
pub mod guest;
