//! `vmshm libvirt-xml`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use vmshm_host::{Node, nodes};

use crate::device::{Device, DeviceArgs};

/// Options of `vmshm libvirt-xml`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Paste the output into the domain (`virsh edit DOMAIN`), each part where its comment says.

For a domain that exists, give its UUID (`virsh domuuid DOMAIN`) with --uuid: libvirt does not let it change.")]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
}

/// The domain, region and device that the text is about.
struct Domain {
    device: Device,
    /// Where the section lies.
    node: Option<Node>,
}

impl Args {
    /// Assigns the section and prints the XML.
    pub fn run(&self) -> anyhow::Result<()> {
        let device = self.device.assign()?;
        let node = nodes().into_iter().find(|node| device.node == Some(node.id));
        write!(std::io::stdout(), "{}", Domain { device, node }.xml())?;
        Ok(())
    }
}

impl Domain {
    fn xml(&self) -> String {
        let mut xml = String::new();
        self.write(&mut xml).expect("a String takes everything");
        xml
    }

    fn write(&self, xml: &mut String) -> std::fmt::Result {
        writeln!(xml, "<!-- In <domain>. The VM finds section {} by it. -->", self.device.section)?;
        writeln!(xml, "<uuid>{}</uuid>", self.device.uuid)?;
        if let Some(node) = &self.node {
            writeln!(
                xml,
                "\n<!-- Section {} lies on NUMA node {} (CPUs {}). In <domain>, to keep the VM there:\n\
                 <vcpu placement='static' cpuset='{}'>number of CPUs</vcpu>\n\
                 <numatune>\n  <memory mode='strict' nodeset='{}'/>\n</numatune>\n-->",
                self.device.section, node.id, node.cpus, node.cpus, node.id
            )?;
        }
        writeln!(xml)?;
        if let Some((socket, vectors)) = &self.device.doorbell {
            writeln!(
                xml,
                "<!-- In <devices>. QEMU's user must be allowed to write to the socket (`vmshm serve --group`). -->\n\
                 <shmem name='vmshm'>\n  <model type='ivshmem-doorbell'/>\n  <server path='{}'/>\n  \
                 <msi vectors='{vectors}' ioeventfd='on'/>\n</shmem>",
                attribute(socket)
            )?;
            return Ok(());
        }
        if let Some(name) = self.plain_name() {
            return writeln!(
                xml,
                "<!-- In <devices>. {} -->\n<shmem name='{}'>\n  <model type='ivshmem-plain'/>\n  \
                 <size unit='M'>{}</size>\n</shmem>",
                self.rights(),
                attribute(name),
                self.device.size >> 20
            );
        }
        writeln!(
            xml,
            "<!-- At the end of <domain>, which must read\n     \
             <domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n     \
             (libvirt's own <shmem> knows only files directly in /dev/shm.)\n     {} -->\n<qemu:commandline>",
            self.rights()
        )?;
        let object = self.device.memory();
        for argument in ["-object", &object, "-device", "ivshmem-plain,memdev=vmshm"] {
            writeln!(xml, "  <qemu:arg value='{}'/>", attribute(argument))?;
        }
        writeln!(xml, "</qemu:commandline>")
    }

    /// The name by which libvirt finds the region, if it can: it looks in `/dev/shm` only, and counts in MiB.
    fn plain_name(&self) -> Option<&str> {
        let path = Path::new(&self.device.path);
        (path.parent() == Some(Path::new("/dev/shm")) && self.device.size >= 1 << 20)
            .then(|| path.file_name()?.to_str())
            .flatten()
    }

    fn rights(&self) -> String {
        // A comment may not contain two hyphens.
        let path = self.device.path.replace("--", "- -");
        let rule = comment_rule(Path::new(&path));
        format!(
            "QEMU's user must be allowed to open {path}:\n     it needs the file's group. With AppArmor, add the line\n       {rule}\n     to /etc/apparmor.d/local/abstractions/libvirt-qemu; with SELinux: chcon -t svirt_image_t {path}"
        )
    }
}

fn comment_rule(path: &Path) -> String {
    format!("\"{}/*\" rwk,", path.parent().unwrap_or(Path::new("/")).display())
}

/// A value as an XML attribute in single quotes.
fn attribute(value: &str) -> String {
    value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn domain(path: &str) -> Domain {
        let device = Device {
            section: 1,
            uuid: Uuid::from_u128(7),
            path: path.to_owned(),
            size: 8 << 30,
            doorbell: None,
            node: None,
        };
        Domain { device, node: None }
    }

    #[test]
    fn a_region_where_libvirt_looks_becomes_a_shmem_device() {
        let xml = domain("/dev/shm/job").xml();
        assert!(xml.contains("<shmem name='job'>") && xml.contains("<size unit='M'>8192</size>"), "{xml}");
        assert!(!xml.contains("qemu:commandline"));
    }

    #[test]
    fn any_other_region_becomes_arguments_of_qemu() {
        let xml = domain("/dev/hugepages/a'b,c/job").xml();
        assert!(xml.contains("mem-path=/dev/hugepages/a&apos;b,,c/job,size=8589934592,share=on'"), "{xml}");
        assert!(xml.contains("xmlns:qemu") && !xml.contains("<shmem name"), "{xml}");
    }

    #[test]
    fn a_device_with_doorbells_names_the_section_s_socket() {
        let mut domain = domain("/dev/shm/vmshm/job");
        domain.device.doorbell = Some(("/run/vmshm/job.1.sock".to_owned(), 4));
        let xml = domain.xml();
        assert!(
            xml.contains("<server path='/run/vmshm/job.1.sock'/>") && xml.contains("vectors='4'"),
            "{xml}"
        );
    }

    #[test]
    fn the_section_s_node_is_told() {
        let node = Node { id: 1, cpus: "8-15".into(), free: 0, has_memory: true };
        let xml = Domain { node: Some(node), ..domain("/dev/shm/vmshm/job") }.xml();
        assert!(xml.contains("cpuset='8-15'") && xml.contains("nodeset='1'"), "{xml}");
    }
}
