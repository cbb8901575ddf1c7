//! The block device, on a [`Disk`].

use std::io::{Read, Write};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::transport::Transport;
use super::virtio_device::{Handled, QUEUE_SIZE, Request, VirtioDevice};
use crate::memory::MemoryError;
use crate::vmm::devices::device::Device;
use crate::vmm::devices::disk::{Disk, DiskError, SECTOR_BYTES};
use crate::vmm::devices::parts::Parts;
use crate::vmm::devices::record::RecordName;

/// Pieces of data in a request: what its first and its last descriptor leave of a queue.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of a piece.
const SEGMENT_BYTES_MAX: u32 = 4096;
const DATA_BYTES_MAX: usize = SEGMENTS_MAX as usize * SEGMENT_BYTES_MAX as usize;
/// A request's kind, a reserved field, its sector.
const HEADER_BYTES: usize = 16;
/// Up to the topology, all of whose fields are there.
const CONFIG_BYTES: usize = 32;
const BLOCK_SECTORS_LOG2: u8 = 3;

#[derive(Debug)]
pub(in crate::vmm::devices) struct Block {
    disk: Disk,
    config: [u8; CONFIG_BYTES],
    name: [u8; VIRTIO_BLK_ID_BYTES as usize],
    data: Vec<u8>,
}

impl Block {
    /// The device on `disk`, which is the `index`th. There are `virtio` virtio devices before it.
    pub(in crate::vmm::devices) fn make(parts: &Parts<'_>, virtio: u32, disk: Disk, index: u32) -> Box<dyn Device> {
        let record = RecordName { name: "disk", index, version: 1 };
        Box::new(Transport::new(Box::new(Self::new(disk, index)), record, parts, virtio))
    }

    pub(super) fn new(disk: Disk, index: u32) -> Self {
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, field: &[u8]| {
            for (place, byte) in config.iter_mut().skip(at).zip(field) {
                *place = *byte;
            }
        };
        put(0, &(disk.bytes() / SECTOR_BYTES).to_le_bytes());
        put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &512_u32.to_le_bytes());
        // Pages are what is written at once.
        put(24, &[BLOCK_SECTORS_LOG2]);
        put(26, &8_u16.to_le_bytes());
        put(28, &8_u32.to_le_bytes());
        let mut name = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (place, byte) in name.iter_mut().zip(format!("slackwater-{index}").bytes()) {
            *place = byte;
        }
        Self { disk, config, name, data: Vec::new() }
    }

    /// The bytes of a request's data, where they lie within the disk and are whole sectors.
    fn place(&self, sector: u64, bytes: usize) -> Option<u64> {
        let begin = sector.checked_mul(SECTOR_BYTES)?;
        let end = begin.checked_add(bytes as u64)?;
        (end <= self.disk.bytes() && (bytes as u64).is_multiple_of(SECTOR_BYTES) && bytes <= DATA_BYTES_MAX).then_some(begin)
    }

    /// The status to answer, or that it waits.
    fn carry_out(&mut self, request: &mut Request<'_>, features: u64, room: usize) -> Result<Option<u32>, DiskError> {
        let mut header = [0; HEADER_BYTES];
        if request.readable.read_exact(&mut header).is_err() {
            return Ok(Some(VIRTIO_BLK_S_IOERR));
        }
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let (kind, sector) = (u32::from_le_bytes([k0, k1, k2, k3]), u64::from_le_bytes(sector));
        let flushes = features & 1 << VIRTIO_BLK_F_FLUSH != 0;
        match kind {
            VIRTIO_BLK_T_IN => {
                let Some(at) = self.place(sector, room) else { return Ok(Some(VIRTIO_BLK_S_IOERR)) };
                self.data.resize(room, 0);
                self.disk.read(at, &mut self.data)?;
                Ok(Some(request.writable.write_all(&self.data).map_or(VIRTIO_BLK_S_IOERR, |()| VIRTIO_BLK_S_OK)))
            }
            VIRTIO_BLK_T_OUT => {
                let bytes = request.readable.available_bytes();
                let Some(at) = self.place(sector, bytes) else { return Ok(Some(VIRTIO_BLK_S_IOERR)) };
                self.data.resize(bytes, 0);
                if request.readable.read_exact(&mut self.data).is_err() {
                    return Ok(Some(VIRTIO_BLK_S_IOERR));
                }
                self.disk.write(at, &self.data)?;
                // A driver that can't ask for it gets it with every write.
                Ok(flushes.then_some(VIRTIO_BLK_S_OK))
            }
            VIRTIO_BLK_T_FLUSH if flushes => Ok(None),
            VIRTIO_BLK_T_GET_ID => {
                let name = self.name.get(..room.min(self.name.len())).unwrap_or_default();
                Ok(Some(request.writable.write_all(name).map_or(VIRTIO_BLK_S_IOERR, |()| VIRTIO_BLK_S_OK)))
            }
            _ => Ok(Some(VIRTIO_BLK_S_UNSUPP)),
        }
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        [VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_FLUSH]
            .iter()
            .fold(0, |features, bit| features | 1 << bit)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn request_bytes_max(&self) -> u64 {
        DATA_BYTES_MAX as u64 + HEADER_BYTES as u64 + 1
    }

    fn pages_written(&self, readable_bytes: u64) -> u64 {
        if readable_bytes > HEADER_BYTES as u64 { Disk::pages_written(readable_bytes) } else { 0 }
    }

    fn handle(&mut self, _queue: usize, mut request: Request<'_>, features: u64) -> Result<Handled, MemoryError> {
        // The last byte of the answer is its status.
        let Some(room) = request.writable.available_bytes().checked_sub(1) else { return Ok(Handled::Answered(0)) };
        let Ok(mut status_byte) = request.writable.split_at(room) else { return Ok(Handled::Answered(0)) };
        let status = match self.carry_out(&mut request, features, room) {
            Ok(None) => return Ok(Handled::WhenDurable),
            Ok(Some(status)) => status,
            Err(DiskError::Memory(error)) => return Err(error),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the guest gets an I/O error of its disk");
                VIRTIO_BLK_S_IOERR
            }
        };
        let bytes = request.writable.bytes_written();
        let answered = status_byte.write_all(&[u8::try_from(status).unwrap_or_default()]).map_or(bytes, |()| bytes + 1);
        Ok(Handled::Answered(u32::try_from(answered).unwrap_or_default()))
    }
}
