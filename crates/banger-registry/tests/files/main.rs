//! Images in files of this host: layouts and archives as tools make them, as they are made
//! rarely, and as nobody should make them.

mod archive;
mod hostile;
mod layout;
mod room;
