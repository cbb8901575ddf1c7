//! The real-time clock: an MC146818 as PCs have it, with 114 bytes of memory.
//!
//! It tells the time, in BCD or binary, by 24 or 12 hours, and takes the time that the guest sets.
//! Its alarm, its periodic interrupt and its square wave are registers without effect: it has no
//! interrupt. Its time is the host's plus an offset, so corrections of the host's clock reach it
//! while the guest runs.

use acpi_tables::Aml;
use acpi_tables::aml::{Device as AmlDevice, EISAName, IO, Name, ResourceTemplate};

use super::addresses::{RTC_CENTURY as CENTURY, RTC_PORT, RTC_PORTS};
use super::bus::BusRange;
use super::device::{Device, DeviceError, NOTHING};
use super::parts::Entry;
use super::record::{Fields, RecordName};
use crate::clock::unix_ns;
use crate::machine::StateError;

pub(super) const ENTRY: Entry = Entry { name: "rtc", is_virtio: false, pages: 0, make: |_, _| Box::new(Rtc::new()) };

const RECORD: RecordName = RecordName::only("rtc", 1);
const REGISTERS: usize = 128;
/// The index register, the time (seconds, nanoseconds), the registers.
const BYTES: usize = 1 + 8 + 4 + REGISTERS;

// Its two ports.
const INDEX: u64 = 0;
const VALUE: u64 = 1;

const SECONDS: u8 = 0x0;
const MINUTES: u8 = 0x2;
const HOURS: u8 = 0x4;
const WEEKDAY: u8 = 0x6;
const DAY: u8 = 0x7;
const MONTH: u8 = 0x8;
const YEAR: u8 = 0x9;
const A: u8 = 0xa;
const B: u8 = 0xb;
const C: u8 = 0xc;
const D: u8 = 0xd;
/// The registers that hold the time.
const TIME: [u8; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];

// In A.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Of the divider's three bits these two say that it stands still.
const DIVIDER_RESET: u8 = 0b110 << 4;
/// A divider for 32,768 Hz, and the usual rate.
const A_AT_START: u8 = 0x26;
// In B.
const SET: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// In D: the time and the memory are valid.
const VALID: u8 = 1 << 7;
/// In the register of hours, by 12 hours.
const PM: u8 = 1 << 7;
/// In the index register: it holds back NMIs on a PC. Kept, and without effect.
const NO_NMI: u8 = 1 << 7;

const SECOND_NS: i128 = 1_000_000_000;
const DAY_S: i64 = 86_400;
/// So long before the time changes, an update is in progress.
const UPDATE_NS: i128 = 244_000;
/// The first second after the divider was reset is half as long.
const AFTER_RESET_NS: i128 = SECOND_NS / 2;

/// The first and the last second that four digits of a year can say, since 1970.
const FIRST_S: i64 = -62_167_219_200;
const LAST_S: i64 = 253_402_300_799;

/// A clock. Times are in nanoseconds since 1970; what is called `now_ns` is the host's.
#[derive(Debug)]
struct Rtc {
    index: u8,
    /// The guest's time is the host's plus this. Where the time stands still, only its nanoseconds
    /// count.
    offset_ns: i128,
    /// As they are read, but for those that hold the time while it runs.
    registers: [u8; REGISTERS],
}

impl Rtc {
    /// A clock that shows the host's time.
    const fn new() -> Self {
        let mut registers = [0; REGISTERS];
        registers[A as usize] = A_AT_START;
        registers[B as usize] = HOURS_24;
        registers[D as usize] = VALID;
        Self { index: 0, offset_ns: 0, registers }
    }

    fn read_at(&self, port: u64, now_ns: i128) -> u8 {
        let index = self.index & !NO_NMI;
        match port {
            VALUE if TIME.contains(&index) && !self.is_stopped() => self.time_registers(now_ns).of(index),
            VALUE if index == A && self.is_updating(now_ns) => self.register(A) | UPDATE_IN_PROGRESS,
            VALUE => self.register(index),
            // The index is only ever written.
            _ => NOTHING,
        }
    }

    fn write_at(&mut self, port: u64, value: u8, now_ns: i128) {
        match port {
            INDEX => self.index = value,
            VALUE => self.write_register(self.index & !NO_NMI, value, now_ns),
            _ => {}
        }
    }

    fn write_register(&mut self, index: u8, value: u8, now_ns: i128) {
        match index {
            A | B => self.control(index, value, now_ns),
            C | D => {}
            _ if TIME.contains(&index) && !self.is_stopped() => {
                self.stop(now_ns);
                self.put(index, value);
                self.go_on(now_ns);
            }
            _ => self.put(index, value),
        }
    }

    /// Takes what is written to A or B, by which the guest stops the time and lets it go on.
    fn control(&mut self, index: u8, value: u8, now_ns: i128) {
        let (was_stopped, was_reset) = (self.is_stopped(), self.is_reset());
        if !was_stopped {
            // With the format that it has had.
            self.stop(now_ns);
        }
        self.put(index, if index == A { value & !UPDATE_IN_PROGRESS } else { value });
        if was_reset && !self.is_reset() {
            let since_ns = self.guest_ns(now_ns).rem_euclid(SECOND_NS);
            self.offset_ns += AFTER_RESET_NS - since_ns;
        }
        if !self.is_stopped() && was_stopped {
            self.go_on(now_ns);
        }
    }

    fn register(&self, index: u8) -> u8 {
        self.registers.get(usize::from(index)).copied().unwrap_or_default()
    }

    fn put(&mut self, index: u8, value: u8) {
        if let Some(place) = self.registers.get_mut(usize::from(index)) {
            *place = value;
        }
    }

    const fn guest_ns(&self, now_ns: i128) -> i128 {
        now_ns + self.offset_ns
    }

    fn is_reset(&self) -> bool {
        self.register(A) & DIVIDER_RESET == DIVIDER_RESET
    }

    fn is_stopped(&self) -> bool {
        self.register(B) & SET != 0 || self.is_reset()
    }

    fn is_updating(&self, now_ns: i128) -> bool {
        !self.is_stopped() && self.guest_ns(now_ns).rem_euclid(SECOND_NS) >= SECOND_NS - UPDATE_NS
    }

    fn format(&self) -> Format {
        Format { binary: self.register(B) & BINARY != 0, hours_24: self.register(B) & HOURS_24 != 0 }
    }

    fn time_registers(&self, now_ns: i128) -> TimeRegisters {
        let seconds = i64::try_from(self.guest_ns(now_ns).div_euclid(SECOND_NS)).unwrap_or(LAST_S);
        TimeRegisters::encode(seconds, self.format())
    }

    /// From now on the registers hold the time.
    fn stop(&mut self, now_ns: i128) {
        let time = self.time_registers(now_ns);
        for index in TIME {
            self.put(index, time.of(index));
        }
    }

    /// The time goes on from what the registers hold. Where a second begins stays.
    fn go_on(&mut self, now_ns: i128) {
        let time = TimeRegisters(TIME.map(|index| self.register(index)));
        let since_ns = self.guest_ns(now_ns).rem_euclid(SECOND_NS);
        self.offset_ns = i128::from(time.decode(self.format())) * SECOND_NS + since_ns - now_ns;
    }

    fn save_at(&self, now_ns: i128) -> Vec<u8> {
        let guest_ns = self.guest_ns(now_ns);
        let seconds = i64::try_from(guest_ns.div_euclid(SECOND_NS)).unwrap_or(LAST_S).clamp(FIRST_S, LAST_S);
        let nanoseconds = u32::try_from(guest_ns.rem_euclid(SECOND_NS)).unwrap_or_default();
        let mut registers = self.registers;
        if !self.is_stopped() {
            let time = TimeRegisters::encode(seconds, self.format());
            for index in TIME {
                if let Some(place) = registers.get_mut(usize::from(index)) {
                    *place = time.of(index);
                }
            }
        }
        let mut data = Vec::with_capacity(BYTES);
        data.push(self.index);
        data.extend(seconds.to_le_bytes());
        data.extend(nanoseconds.to_le_bytes());
        data.extend(registers);
        data
    }

    fn restore_at(&mut self, mut saved: Fields<'_>, now_ns: i128) -> Result<(), StateError> {
        let (index, seconds, nanoseconds) = (saved.u8()?, saved.i64()?, saved.u32()?);
        let registers = saved.bytes()?;
        saved.end()?;
        if !(FIRST_S..=LAST_S).contains(&seconds) {
            return Err(saved.malformed_at(1, "a time in the years 0 to 9999"));
        }
        if i128::from(nanoseconds) >= SECOND_NS {
            return Err(saved.malformed_at(9, "less than a second"));
        }
        let guest_ns = i128::from(seconds) * SECOND_NS + i128::from(nanoseconds);
        let restored = Self { index, offset_ns: guest_ns - now_ns, registers };
        let at = |index: u8| BYTES - REGISTERS + usize::from(index);
        for (index, is_valid, expected) in [
            (A, restored.register(A) & UPDATE_IN_PROGRESS == 0, "no update in progress"),
            (C, restored.register(C) == 0, "no interrupt"),
            (D, restored.register(D) == VALID, "a valid time"),
        ] {
            if !is_valid {
                return Err(saved.malformed_at(at(index), expected));
            }
        }
        let time = TimeRegisters::encode(seconds, restored.format());
        if let Some(index) = TIME.into_iter().find(|index| !restored.is_stopped() && time.of(*index) != restored.register(*index))
        {
            return Err(saved.malformed_at(at(index), "what the time in front says"));
        }
        *self = restored;
        Ok(())
    }
}

impl Device for Rtc {
    fn ranges(&self) -> Vec<BusRange> {
        vec![BusRange::ports(RTC_PORT, RTC_PORTS)]
    }

    fn read(&mut self, _base: u64, offset: u64, data: &mut [u8]) {
        data.fill_with(|| self.read_at(offset, host_ns()));
    }

    fn write(&mut self, _base: u64, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        data.iter().for_each(|byte| self.write_at(offset, *byte, host_ns()));
        Ok(())
    }

    /// It has no interrupt, and so no alarm.
    fn describe(&self, aml: &mut Vec<u8>) {
        let ports = IO::new(RTC_PORT, RTC_PORT, 1, RTC_PORTS);
        AmlDevice::new(
            "RTC_".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
            ],
        )
        .to_aml_bytes(aml);
    }

    fn record(&self) -> Option<RecordName> {
        Some(RECORD)
    }

    fn save(&self) -> Vec<u8> {
        self.save_at(host_ns())
    }

    /// The time goes on from where it was.
    fn restore(&mut self, saved: Fields<'_>) -> Result<(), StateError> {
        self.restore_at(saved, host_ns())
    }

    /// Puts the time forward, unless the guest has stopped it.
    fn advance_clock(&mut self, ns: u64) {
        if !self.is_stopped() {
            self.offset_ns += i128::from(ns);
        }
    }
}

fn host_ns() -> i128 {
    unix_ns().into()
}

/// How registers spell the time.
#[derive(Clone, Copy, Debug)]
struct Format {
    /// Not in BCD.
    binary: bool,
    /// Not 12 hours, with a bit for those after noon.
    hours_24: bool,
}

impl Format {
    fn number(self, value: u8) -> u8 {
        if self.binary { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    /// At most 165: guests write what they like.
    const fn value(self, number: u8) -> u8 {
        if self.binary { number } else { (number >> 4) * 10 + (number & 0xf) }
    }
}

/// What the registers of [`TIME`] hold, in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TimeRegisters([u8; TIME.len()]);

impl TimeRegisters {
    fn of(self, index: u8) -> u8 {
        TIME.into_iter().zip(self.0).find(|(register, _)| *register == index).map_or(0, |(_, value)| value)
    }

    /// Of a time in seconds since 1970; outside of the years 0 to 9999, of the nearest in them.
    fn encode(seconds: i64, format: Format) -> Self {
        let seconds = seconds.clamp(FIRST_S, LAST_S);
        let (days, second) = (seconds.div_euclid(DAY_S), seconds.rem_euclid(DAY_S));
        let (year, month, day) = date_of(days);
        let hour = second / 3600;
        let byte = |value: i64| format.number(u8::try_from(value).unwrap_or_default());
        let hours = if format.hours_24 {
            byte(hour)
        } else {
            let afternoon = if hour >= 12 { PM } else { 0 };
            byte((hour + 11) % 12 + 1) | afternoon
        };
        // The first of January 1970 was a Thursday, and Sunday is 1.
        let weekday = (days + 4).rem_euclid(7) + 1;
        Self([
            byte(second % 60),
            byte(second / 60 % 60),
            hours,
            byte(weekday),
            byte(day),
            byte(month),
            byte(year % 100),
            byte(year / 100),
        ])
    }

    /// In seconds since 1970. What can't be is taken as the nearest that can; the weekday does not
    /// count.
    fn decode(self, format: Format) -> i64 {
        let [seconds, minutes, hours, _, day, month, year, century] = self.0;
        let value = |number, least: i64, most: i64| i64::from(format.value(number)).clamp(least, most);
        let hour = if format.hours_24 {
            value(hours, 0, 23)
        } else {
            value(hours & !PM, 1, 12) % 12 + if hours & PM != 0 { 12 } else { 0 }
        };
        let year = value(century, 0, 99) * 100 + value(year, 0, 99);
        let days = days_before(year, value(month, 1, 12)) + value(day, 1, 31) - 1;
        days * DAY_S + hour * 3600 + value(minutes, 0, 59) * 60 + value(seconds, 0, 59)
    }
}

/// Days from 1970 to the first of a month (1 to 12), by the Gregorian calendar. Years begin in
/// March here, so that leap days are at the end.
const fn days_before(year: i64, month: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5 - 719_468
}

/// Year, month and day of a number of days since 1970.
const fn date_of(days: i64) -> (i64, i64, i64) {
    const DAYS_IN_400_YEARS: i64 = 146_097;
    let days = days + 719_468;
    let (round, day) = (days.div_euclid(DAYS_IN_400_YEARS), days.rem_euclid(DAYS_IN_400_YEARS));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = year + round * 400;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// 2024-02-29 23:59:58.25, a Thursday.
    const NOW: i128 = 1_709_251_198 * SECOND_NS + 250_000_000;
    const BCD_24: Format = Format { binary: false, hours_24: true };

    fn get(rtc: &mut Rtc, index: u8, now_ns: i128) -> u8 {
        rtc.write_at(INDEX, index, now_ns);
        rtc.read_at(VALUE, now_ns)
    }

    fn set(rtc: &mut Rtc, index: u8, value: u8, now_ns: i128) {
        rtc.write_at(INDEX, index, now_ns);
        rtc.write_at(VALUE, value, now_ns);
    }

    fn put_back(rtc: &mut Rtc, saved: &[u8], now_ns: i128) -> Result<(), StateError> {
        let record = RECORD.with(saved.to_vec());
        rtc.restore_at(Fields::of(&record, RECORD)?, now_ns)
    }

    /// In the order of [`TIME`].
    fn time(rtc: &mut Rtc, now_ns: i128) -> [u8; 8] {
        TIME.map(|index| get(rtc, index, now_ns))
    }

    #[test]
    fn it_shows_the_hosts_time_in_each_format() {
        let mut rtc = Rtc::new();
        assert_eq!(time(&mut rtc, NOW), [0x58, 0x59, 0x23, 5, 0x29, 0x02, 0x24, 0x20]);
        assert_eq!(time(&mut rtc, NOW + 2 * SECOND_NS), [0, 0, 0, 6, 1, 0x03, 0x24, 0x20]);
        set(&mut rtc, B, BINARY | HOURS_24, NOW);
        assert_eq!(time(&mut rtc, NOW), [58, 59, 23, 5, 29, 2, 24, 20]);
        for (hour, by_12) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x12 | PM), (13, 0x01 | PM), (23, 0x11 | PM)] {
            let at = (NOW / SECOND_NS / 86_400 * 86_400 + hour * 3600) * SECOND_NS;
            set(&mut rtc, B, 0, at);
            assert_eq!(get(&mut rtc, HOURS, at), by_12, "{hour}");
        }
        assert_eq!(rtc.read_at(INDEX, NOW), NOTHING);
    }

    #[test]
    fn what_is_spelled_is_read_back() {
        for binary in [false, true] {
            for hours_24 in [false, true] {
                let format = Format { binary, hours_24 };
                for seconds in (FIRST_S..=LAST_S).step_by(86_400 * 97 + 3601).chain([FIRST_S, -1, 0, LAST_S]) {
                    assert_eq!(TimeRegisters::encode(seconds, format).decode(format), seconds);
                }
            }
        }
        let leap = TimeRegisters([0, 0, 0, 0, 0x29, 0x02, 0x00, 0x20]).decode(BCD_24);
        assert_eq!(leap, 951_782_400);
        // 1900 had no such day.
        let none = TimeRegisters([0, 0, 0, 0, 0x29, 0x02, 0x00, 0x19]).decode(BCD_24);
        assert_eq!(TimeRegisters::encode(none, BCD_24).0[4..], [0x01, 0x03, 0x00, 0x19]);
    }

    #[test]
    fn no_registers_are_too_strange() {
        for byte in 0..=u8::MAX {
            for control in [0, BINARY, HOURS_24, BINARY | HOURS_24] {
                let mut rtc = Rtc::new();
                set(&mut rtc, B, control | SET, NOW);
                TIME.into_iter().for_each(|index| set(&mut rtc, index, byte, NOW));
                assert_eq!(time(&mut rtc, NOW), [byte; 8]);
                set(&mut rtc, B, control, NOW);
                put_back(&mut Rtc::new(), &rtc.save_at(NOW), NOW).unwrap();
            }
        }
        // Times that no register can say.
        for now_ns in [i128::from(LAST_S + 1) * SECOND_NS, i128::from(u64::MAX) * SECOND_NS, i128::from(FIRST_S - 1) * SECOND_NS]
        {
            put_back(&mut Rtc::new(), &Rtc::new().save_at(now_ns), NOW).unwrap();
        }
    }

    /// As Linux does it (`mc146818_set_time`): stop the time and the divider, write, let them go on
    /// in that order.
    #[test]
    fn a_guest_sets_the_time() {
        let mut rtc = Rtc::new();
        let (control, rate) = (get(&mut rtc, B, NOW), get(&mut rtc, A, NOW));
        set(&mut rtc, B, control | SET, NOW);
        set(&mut rtc, A, rate | 0x70, NOW);
        let wanted = [0x30, 0x15, 0x08, 2, 0x31, 0x12, 0x99, 0x19];
        TIME.into_iter().zip(wanted).for_each(|(index, value)| set(&mut rtc, index, value, NOW));
        // It stands still.
        let later = NOW + 7 * SECOND_NS;
        assert_eq!(time(&mut rtc, later), wanted);
        set(&mut rtc, B, control, later);
        assert_eq!(time(&mut rtc, later + SECOND_NS), wanted, "the divider is still reset");
        set(&mut rtc, A, rate, later);
        // A Friday, whatever was written. The first second has half a second.
        assert_eq!(time(&mut rtc, later + AFTER_RESET_NS - 1), [0x30, 0x15, 0x08, 6, 0x31, 0x12, 0x99, 0x19]);
        assert_eq!(time(&mut rtc, later + AFTER_RESET_NS), [0x31, 0x15, 0x08, 6, 0x31, 0x12, 0x99, 0x19]);
        assert_eq!(time(&mut rtc, later + 57_000 * SECOND_NS), [0x30, 0x05, 0x00, 7, 0x01, 0x01, 0x00, 0x20]);
    }

    #[test]
    fn one_register_is_set_while_the_time_goes_on() {
        let mut rtc = Rtc::new();
        set(&mut rtc, MINUTES, 0x07, NOW);
        assert_eq!(time(&mut rtc, NOW)[..3], [0x58, 0x07, 0x23]);
        assert_eq!(time(&mut rtc, NOW + 3 * SECOND_NS / 4)[0], 0x59, "where a second begins stays");
    }

    #[test]
    fn an_update_is_announced() {
        let mut rtc = Rtc::new();
        let next = NOW + 3 * SECOND_NS / 4;
        for (now_ns, updating) in
            [(NOW, false), (next - UPDATE_NS - 1, false), (next - UPDATE_NS, true), (next - 1, true), (next, false)]
        {
            assert_eq!(get(&mut rtc, A, now_ns), A_AT_START | if updating { UPDATE_IN_PROGRESS } else { 0 });
        }
        set(&mut rtc, B, SET | HOURS_24, NOW);
        assert_eq!(get(&mut rtc, A, next - 1), A_AT_START, "there is none while the time stands still");
    }

    #[test]
    fn memory_is_kept_and_status_is_not_written() {
        let mut rtc = Rtc::new();
        for index in (0xe..=0x7f).filter(|index| *index != CENTURY) {
            set(&mut rtc, index, index ^ 0x5a, NOW);
        }
        // The index's highest bit is not part of it.
        assert!((0xe..=0x7f).filter(|index| *index != CENTURY).all(|index| get(&mut rtc, index | NO_NMI, NOW) == index ^ 0x5a));
        for index in [C, D] {
            set(&mut rtc, index, 0xff, NOW);
        }
        set(&mut rtc, A, UPDATE_IN_PROGRESS | A_AT_START, NOW);
        assert_eq!([A, C, D].map(|index| get(&mut rtc, index, NOW)), [A_AT_START, 0, VALID]);
    }

    #[test]
    fn what_is_saved_goes_on_from_where_it_was() {
        let mut rtc = Rtc::new();
        set(&mut rtc, HOURS, 0x05, NOW);
        set(&mut rtc, 0x40, 0x99, NOW);
        let before = time(&mut rtc, NOW);
        let saved = rtc.save_at(NOW);
        // On another host, a year before.
        let there = NOW - 366 * 86_400 * SECOND_NS;
        let mut other = Rtc::new();
        put_back(&mut other, &saved, there).unwrap();
        assert_eq!(other.save_at(there), saved);
        assert_eq!((time(&mut other, there), get(&mut other, 0x40, there)), (before, 0x99));
        // Or after a minute that is to count.
        other.advance_clock(60_000_000_000);
        assert_eq!(time(&mut other, there)[..3], [0x58, 0x00, 0x06]);
        // Not where the guest has stopped it.
        set(&mut rtc, B, SET | HOURS_24, NOW);
        put_back(&mut other, &rtc.save_at(NOW), there).unwrap();
        other.advance_clock(60_000_000_000);
        assert_eq!(time(&mut other, there), before);
        set(&mut other, B, HOURS_24, there);
        assert_eq!(time(&mut other, there), before);
    }

    #[test]
    fn nothing_else_is_taken() {
        let saved = Rtc::new().save_at(NOW);
        let restore = |saved: &[u8]| put_back(&mut Rtc::new(), saved, NOW);
        restore(&saved).unwrap();
        for bytes in [BYTES - 1, BYTES + 1, 0, 1] {
            let mut data = saved.clone();
            data.resize(bytes, 0);
            restore(&data).unwrap_err();
        }
        let changed = |at: usize, bytes: &[u8]| {
            let mut saved = saved.clone();
            saved[at..at + bytes.len()].copy_from_slice(bytes);
            restore(&saved).map_err(|error| match error {
                StateError::Malformed { offset, .. } => offset,
                error => panic!("{error}"),
            })
        };
        let registers = BYTES - REGISTERS;
        assert_eq!(changed(1, &(LAST_S + 1).to_le_bytes()), Err(1));
        assert_eq!(changed(1, &i64::MIN.to_le_bytes()), Err(1));
        assert_eq!(changed(9, &1_000_000_000_u32.to_le_bytes()), Err(9));
        assert_eq!(changed(registers + 0xa, &[0xa6]), Err(registers + 0xa));
        assert_eq!(changed(registers + 0xc, &[1]), Err(registers + 0xc));
        assert_eq!(changed(registers + 0xd, &[0]), Err(registers + 0xd));
        assert_eq!(changed(registers, &[0x57]), Err(registers), "not the seconds that the time has");
        assert_eq!(changed(registers + 0x32, &[0x19]), Err(registers + 0x32));
        assert_eq!(changed(registers + 0x31, &[0x19]), Ok(()));
    }
}
