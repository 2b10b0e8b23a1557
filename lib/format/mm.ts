/**
 * CRIU's `mm-N.img`, as far as it says which kinds of memory a process has: two magics u32, a size u32, and an
 * `mm_entry`.
 */
import { decodeMessage, MM_VMAS, repeatedMessages, vmaEntry } from './criu-messages.ts'

const COMMON_MAGIC = 0x54564319
const MM_MAGIC = 0x57492820
const HEAD_BYTES = 12
/** Linux's mmap flags, which the images have as they are. */
const MAP_PRIVATE = 0x2
const MAP_HUGETLB = 0x40000

/**
 * Whether the process has private memory of huge pages (MAP_HUGETLB). False for bytes that are no such image: CRIU says
 * what is wrong with them.
 */
export function hasPrivateHugePages(image: Buffer): boolean {
  if (image.length < HEAD_BYTES || image.readUInt32LE(0) !== COMMON_MAGIC || image.readUInt32LE(4) !== MM_MAGIC) {
    return false
  }
  try {
    for (const vma of repeatedMessages(MM_VMAS, image.subarray(HEAD_BYTES))) {
      const { flags = 0 } = decodeMessage(vmaEntry, vma)
      if ((flags & MAP_PRIVATE) !== 0 && (flags & MAP_HUGETLB) !== 0) return true
    }
  } catch {}
  return false
}
