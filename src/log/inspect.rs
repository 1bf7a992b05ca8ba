//! Looking at segment files offline.
