//! A virtio disk over a raw image that the guest may only read, or of which it has a private copy.
//!
//! A guest's writes to its copy go to a file without a name, and are gone with the VM. The image itself is never
//! written to, so that many VMs may start from one.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

use crate::error::Error;
use crate::virtio::{Backend, Done, serve_all};

const SECTOR: u64 = 512;
/// Unit of copy on write: copied as a whole when a guest first writes to it.
const BLOCK: u64 = 64 << 10;
const ID: &[u8; 20] = b"vmshm\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A disk.
#[derive(Debug)]
pub struct Disk {
    image: File,
    sectors: u64,
    copy: Option<Copy>,
}

/// The blocks that a guest has written to.
#[derive(Debug)]
struct Copy {
    file: File,
    /// One bit per block.
    written: Vec<u64>,
}

impl Disk {
    /// Opens an image, or a block device that holds one. With `scratch`, a directory for a file without a name, the guest gets a private copy.
    ///
    /// # Errors
    /// The image cannot be opened, or is no multiple of 512 bytes; no file can be made in `scratch`.
    pub fn open(path: &Path, scratch: Option<&Path>) -> Result<Self, Error> {
        let mut image =
            File::open(path).map_err(Error::io(format!("open the disk image {}", path.display())))?;
        let kind = image.metadata().map_err(Error::io(format!("look at {}", path.display())))?.file_type();
        // A block device's length is not among what the file system says of it.
        let len = image.seek(SeekFrom::End(0)).unwrap_or(0);
        if !(kind.is_file() || kind.is_block_device()) || len == 0 || !len.is_multiple_of(SECTOR) {
            return Err(Error::Invalid {
                what: "the disk image",
                value: path.display().to_string(),
                why: format!(
                    "has {len} bytes: give a file with a raw image, a multiple of {SECTOR} bytes, or a block device"
                ),
            });
        }
        let copy = scratch.map(|dir| {
            let doing = format!("make a file for what the guest writes, in {}", dir.display());
            let file = nameless(dir).map_err(Error::io(doing))?;
            let blocks = len.div_ceil(BLOCK).div_ceil(64);
            Ok::<_, Error>(Copy { file, written: vec![0; blocks as usize] })
        });
        Ok(Self { image, sectors: len / SECTOR, copy: copy.transpose()? })
    }

    /// Reads or writes a part that lies in one block.
    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        match &self.copy {
            Some(copy) if copy.has(at / BLOCK) => copy.file.read_exact_at(bytes, at),
            _ => self.image.read_exact_at(bytes, at),
        }
    }

    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let Some(copy) = &mut self.copy else { return Err(io::ErrorKind::ReadOnlyFilesystem.into()) };
        let block = at / BLOCK;
        if !copy.has(block) {
            let start = block * BLOCK;
            let mut old = vec![0; BLOCK.min(self.sectors * SECTOR - start) as usize];
            self.image.read_exact_at(&mut old, start)?;
            copy.file.write_all_at(&old, start)?;
            copy.written[(block / 64) as usize] |= 1 << (block % 64);
        }
        copy.file.write_all_at(bytes, at)
    }

    /// Carries out a request. Returns its status and how many bytes went to the guest.
    fn request(
        &mut self,
        reader: &mut impl Read,
        readable: usize,
        writer: &mut impl Write,
        room: usize,
    ) -> (u32, usize) {
        let mut header = [0; 16];
        if reader.read_exact(&mut header).is_err() {
            return (VIRTIO_BLK_S_IOERR, 0);
        }
        let word = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        match word {
            VIRTIO_BLK_T_IN => self.transfer(sector, room, |disk, at, bytes| {
                disk.read(bytes, at)?;
                writer.write_all(bytes)
            }),
            VIRTIO_BLK_T_OUT => {
                let (status, _) = self.transfer(sector, readable.saturating_sub(16), |disk, at, bytes| {
                    reader.read_exact(bytes)?;
                    disk.write(bytes, at)
                });
                (status, 0)
            }
            // Nothing is promised beyond the VM's life.
            VIRTIO_BLK_T_FLUSH => (VIRTIO_BLK_S_OK, 0),
            VIRTIO_BLK_T_GET_ID if room >= ID.len() => match writer.write_all(ID) {
                Ok(()) => (VIRTIO_BLK_S_OK, ID.len()),
                Err(_) => (VIRTIO_BLK_S_IOERR, 0),
            },
            _ => (VIRTIO_BLK_S_UNSUPP, 0),
        }
    }

    /// Moves `len` bytes block by block. Returns the status and how many bytes were moved.
    fn transfer(
        &mut self,
        sector: u64,
        len: usize,
        mut part: impl FnMut(&mut Self, u64, &mut [u8]) -> io::Result<()>,
    ) -> (u32, usize) {
        let wanted = (len as u64).div_ceil(SECTOR);
        let inside = sector.checked_add(wanted).is_some_and(|end| end <= self.sectors);
        if !inside || !(len as u64).is_multiple_of(SECTOR) {
            return (VIRTIO_BLK_S_IOERR, 0);
        }
        let mut buffer = vec![0; len.min(BLOCK as usize)];
        let mut done = 0;
        while done < len {
            let at = sector * SECTOR + done as u64;
            let step = (BLOCK - at % BLOCK).min((len - done) as u64) as usize;
            if let Err(error) = part(self, at, &mut buffer[..step]) {
                tracing::debug!(%error, at, "a disk request fails");
                return (VIRTIO_BLK_S_IOERR, done);
            }
            done += step;
        }
        (VIRTIO_BLK_S_OK, done)
    }
}

impl Copy {
    fn has(&self, block: u64) -> bool {
        self.written[(block / 64) as usize] >> (block % 64) & 1 == 1
    }
}

fn nameless(dir: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(dir)
}

impl Backend for Disk {
    const TYPE: u16 = 2;
    const CLASS: u16 = 0x0100;
    const QUEUES: usize = 1;
    const NAME: &'static str = "virtio-blk";

    fn features(&self) -> u64 {
        1 << VIRTIO_BLK_F_FLUSH | if self.copy.is_none() { 1 << VIRTIO_BLK_F_RO } else { 0 }
    }

    fn config(&self) -> Vec<u8> {
        self.sectors.to_le_bytes().to_vec()
    }

    fn process(&mut self, _: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> Done {
        serve_all(queue, memory, |chain| {
            let (Ok(mut reader), Ok(mut writer)) = (chain.clone().reader(memory), chain.writer(memory))
            else {
                return 0;
            };
            let (readable, room) = (reader.available_bytes(), writer.available_bytes());
            // The last byte that the guest gives is for the status.
            let Some(room) = room.checked_sub(1) else { return 0 };
            let Ok(mut status_at) = writer.split_at(room) else { return 0 };
            let (status, moved) = self.request(&mut reader, readable, &mut writer, room);
            let _ = status_at.write_all(&[status as u8]);
            moved as u32 + 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(disk: &mut Disk, kind: u32, sector: u64, data: &[u8], room: usize) -> (u32, Vec<u8>) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        bytes.extend(data);
        let (len, mut out) = (bytes.len(), Vec::new());
        let (status, moved) = disk.request(&mut &bytes[..], len, &mut out, room);
        assert!(kind == VIRTIO_BLK_T_OUT || moved == out.len() || status != VIRTIO_BLK_S_OK);
        (status, out)
    }

    #[test]
    fn a_private_copy_is_read_back_and_the_image_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let old: Vec<u8> = (0..3 * BLOCK as usize / 2).map(|i| (i / 512) as u8).collect();
        std::fs::write(&path, &old).unwrap();
        let mut disk = Disk::open(&path, Some(dir.path())).unwrap();
        // Across two blocks, the second of which is cut short.
        let sector = BLOCK / SECTOR - 1;
        assert_eq!(request(&mut disk, VIRTIO_BLK_T_OUT, sector, &[0xee; 1024], 0).0, VIRTIO_BLK_S_OK);
        let (status, out) = request(&mut disk, VIRTIO_BLK_T_IN, 0, &[], old.len());
        assert_eq!(status, VIRTIO_BLK_S_OK);
        let mut wanted = old.clone();
        wanted[sector as usize * 512..][..1024].fill(0xee);
        assert_eq!(out, wanted);
        assert_eq!(std::fs::read(&path).unwrap(), old);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the copy has no name");
    }

    #[test]
    fn what_makes_no_sense_is_an_error_of_the_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [7; 1024]).unwrap();
        let mut disk = Disk::open(&path, None).unwrap();
        assert_eq!(request(&mut disk, VIRTIO_BLK_T_OUT, 0, &[0; 512], 0).0, VIRTIO_BLK_S_IOERR, "read-only");
        for (sector, room) in [(2, 512), (1, 1024), (u64::MAX, 512), (0, 513)] {
            assert_eq!(request(&mut disk, VIRTIO_BLK_T_IN, sector, &[], room).0, VIRTIO_BLK_S_IOERR);
        }
        assert_eq!(request(&mut disk, 77, 0, &[], 512).0, VIRTIO_BLK_S_UNSUPP);
        let (status, moved) = disk.request(&mut &[0; 3][..], 3, &mut Vec::new(), 0);
        assert_eq!((status, moved), (VIRTIO_BLK_S_IOERR, 0), "a header cut short");
        assert_eq!(disk.features() >> VIRTIO_BLK_F_RO & 1, 1);
        std::fs::write(&path, [7; 1000]).unwrap();
        assert!(Disk::open(&path, None).unwrap_err().to_string().contains("1000 bytes"));
    }
}
