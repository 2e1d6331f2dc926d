//! Bus numbers and addresses of passed-through functions, and of the ports above them.

use std::collections::BTreeSet;

use super::shape::Bar;
use crate::error::Error;
use crate::layout;
use crate::port::{Room, RootBus, WINDOW_UNIT, Window};

/// Where a function is, and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The port's root bus, and its device number there.
    pub(super) port: (u8, usize),
    /// The bus below the port.
    pub(super) bus: u8,
    /// The port's windows below and above 4 GiB.
    pub(super) windows: [Option<Window>; 2],
    /// Where each BAR begins, by index.
    pub(super) bars: Vec<(usize, u64)>,
}

/// Gives functions their places: each its virtual node, if there is one, and its BARs. Those of a node share a root bus, by
/// which kernels learn of it; all others have ports on bus 0, from device number `device` on. Bus numbers end before `buses`.
///
/// # Errors
/// Too few buses, or too little room.
pub(super) fn plan(
    functions: &[(Option<usize>, Vec<Bar>)],
    room: Room,
    device: usize,
    buses: u8,
) -> Result<(Vec<Place>, Vec<RootBus>), Error> {
    // Lengths that are powers of two, so that all that lies in a window is aligned if the window is.
    let window = |bars: &[Bar], wide| match bars.iter().filter(|bar| bar.wide == wide).map(Bar::room).sum() {
        0 => 0,
        bytes => u64::next_power_of_two(bytes).max(WINDOW_UNIT),
    };
    let windows = |node, wide| {
        let len = |(of, bars): &(Option<usize>, Vec<Bar>)| if *of == node { window(bars, wide) } else { 0 };
        functions.iter().map(len).collect::<Vec<_>>()
    };
    let nodes: BTreeSet<_> = functions.iter().map(|(node, _)| *node).collect();
    let groups = |wide| {
        let len = |node: &Option<usize>| match windows(*node, wide).iter().sum() {
            0 => 0,
            bytes => u64::next_power_of_two(bytes),
        };
        nodes.iter().map(len).collect::<Vec<_>>()
    };
    let low = stack(&groups(false), room[0], "32-bit BARs")?;
    let high = stack(&groups(true), room[1], "64-bit BARs")?;
    let mut places = vec![None; functions.len()];
    let mut roots = Vec::new();
    let mut next = 1;
    for (&node, group) in nodes.iter().zip(low.into_iter().zip(high)) {
        let room = [group.0.unwrap_or_default(), group.1.unwrap_or_default()];
        let (root, mut number) = if node.is_some() { (next, 0) } else { (0, device) };
        next += u8::from(node.is_some());
        let low = stack(&windows(node, false), room[0], "32-bit BARs")?;
        let high = stack(&windows(node, true), room[1], "64-bit BARs")?;
        for (i, (low, high)) in low.into_iter().zip(high).enumerate().filter(|(i, _)| functions[*i].0 == node)
        {
            let mut bars = Vec::new();
            for (wide, window) in [(false, low), (true, high)] {
                let those: Vec<_> = functions[i].1.iter().filter(|bar| bar.wide == wide).collect();
                let lens: Vec<_> = those.iter().map(|bar| bar.room()).collect();
                let starts = stack(&lens, window.unwrap_or_default(), "BARs")?;
                bars.extend(those.iter().zip(starts).filter_map(|(bar, at)| Some((bar.index, at?.0))));
            }
            places[i] = Some(Place { port: (root, number), bus: next, windows: [low, high], bars });
            number += 1;
            next += 1;
        }
        if let Some(node) = node {
            roots.push(RootBus { node, first: root, last: next - 1, room });
        }
    }
    if next > buses {
        return Err(Error::Invalid {
            what: "the devices passed through",
            value: format!("need {next} buses"),
            why: format!("of which there are {buses}: pass fewer through"),
        });
    }
    Ok((places.into_iter().flatten().collect(), roots))
}

/// Gives each length that is not 0 its place.
fn stack(lens: &[u64], room: Window, what: &'static str) -> Result<Vec<Option<Window>>, Error> {
    let starts = layout::stack(lens, room.0, room.1).ok_or_else(|| Error::Invalid {
        what,
        value: format!("of {:#x} bytes", lens.iter().sum::<u64>()),
        why: format!("do not fit into {:#x} bytes of addresses: pass fewer devices through", room.1),
    })?;
    Ok(lens.iter().zip(starts).map(|(&len, start)| (len > 0).then_some((start, len))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = [(0xc040_0000, 0x1fc0_0000), (1 << 45, 1 << 44)];

    fn bars(lens: &[(u64, bool)]) -> Vec<Bar> {
        lens.iter().enumerate().map(|(index, &(len, wide))| Bar { index, len, wide }).collect()
    }

    fn adapter() -> Vec<Bar> {
        bars(&[(32 << 20, true), (0x100, false), (1 << 20, true), (0x4000, false)])
    }

    /// Ranges that are disjoint, and each inside another.
    fn check(inner: &[Window], outer: Window) {
        for (i, a) in inner.iter().enumerate() {
            assert!(a.0 >= outer.0 && a.0 + a.1 <= outer.0 + outer.1, "{a:x?} in {outer:x?}");
            for b in &inner[i + 1..] {
                assert!(a.0 + a.1 <= b.0 || b.0 + b.1 <= a.0, "{a:x?} and {b:x?}");
            }
        }
    }

    #[test]
    fn windows_hold_their_bars_and_root_buses_their_windows() {
        let functions: Vec<_> =
            [None, Some(1), Some(0), Some(1), None].into_iter().map(|node| (node, adapter())).collect();
        let (places, roots) = plan(&functions, ROOM, 7, layout::BUSES).unwrap();
        let numbers: Vec<_> = places.iter().map(|place| (place.port, place.bus)).collect();
        assert_eq!(numbers, [((0, 7), 1), ((5, 0), 6), ((3, 0), 4), ((5, 1), 7), ((0, 8), 2)]);
        let buses: Vec<_> = roots.iter().map(|root| (root.node, root.first, root.last)).collect();
        assert_eq!(buses, [(0, 3, 4), (1, 5, 7)]);
        for wide in [0, 1] {
            let windows = |root| {
                let of = |place: &&Place| place.port.0 == root;
                places.iter().filter(of).filter_map(|place| place.windows[wide]).collect::<Vec<_>>()
            };
            check(
                &roots.iter().map(|root| root.room[wide]).chain(windows(0)).collect::<Vec<_>>(),
                ROOM[wide],
            );
            roots.iter().for_each(|root| check(&windows(root.first), root.room[wide]));
            for place in &places {
                let bars = place.bars.iter().map(|&(index, at)| (at, adapter()[index]));
                let bars: Vec<_> = bars.filter(|(_, bar)| usize::from(bar.wide) == wide).collect();
                assert!(bars.iter().all(|(at, bar)| at.is_multiple_of(bar.room())));
                let ranges: Vec<_> = bars.iter().map(|(at, bar)| (*at, bar.room())).collect();
                check(&ranges, place.windows[wide].unwrap());
            }
        }
    }

    #[test]
    fn a_function_without_bars_has_a_port_whose_windows_are_shut() {
        let (places, roots) = plan(&[(None, Vec::new())], ROOM, 3, layout::BUSES).unwrap();
        assert_eq!(places[0].windows, [None, None]);
        assert!(places[0].bars.is_empty() && roots.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let huge = [(None, bars(&[(1 << 29, false)]))];
        assert!(
            plan(&huge, ROOM, 1, layout::BUSES)
                .unwrap_err()
                .to_string()
                .contains("32-bit BARs of 0x20000000 bytes")
        );
        let many: Vec<_> = (0..8).map(|node| (Some(node), adapter())).collect();
        assert!(plan(&many, ROOM, 1, layout::BUSES).unwrap_err().to_string().contains("need 17 buses"));
    }
}
