//! Messages in flight, each with a number to know it by.

/// Numbered values; a number is used again once its value was taken.
#[derive(Debug)]
pub(crate) struct InFlight<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> InFlight<T> {
    pub fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    /// The number that [`InFlight::begin`] uses next.
    #[inline]
    pub fn next(&self) -> u64 {
        *self.free.last().unwrap_or(&self.slots.len()) as u64
    }

    #[inline]
    pub fn begin(&mut self, message: T) {
        match self.free.pop() {
            Some(slot) => self.slots[slot] = Some(message),
            None => self.slots.push(Some(message)),
        }
    }

    /// Takes the message with a number, if it is in flight.
    #[inline]
    pub fn end(&mut self, number: u64) -> Option<T> {
        let slot = usize::try_from(number).ok()?;
        let message = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(message)
    }

    /// Takes all of them.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.free.clear();
        self.slots.drain(..).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_and_others_do_no_harm() {
        let mut flights = InFlight::new();
        assert!(flights.end(0).is_none() && flights.end(u64::MAX).is_none());
        let first = flights.next();
        flights.begin('a');
        let second = flights.next();
        flights.begin('b');
        assert_ne!(first, second);
        assert_eq!((flights.end(first), flights.end(first)), (Some('a'), None));
        assert_eq!(flights.next(), first);
        assert_eq!(flights.drain().collect::<Vec<_>>(), ['b']);
    }
}
