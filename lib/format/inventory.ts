/**
 * CRIU's `inventory.img`, as far as it says whether the other images are of a kind that we understand: its magic u32,
 * a size u32, and an `inventory_entry`.
 */
import { Fault } from '../fault.ts'
import { decodeOrFault, inventoryEntry } from './criu-messages.ts'

export interface Inventory {
  /** The images are those of a pre-dump: there are pages, and no process. */
  preDump: boolean
}

const INVENTORY_MAGIC = 0x58313116
const HEAD_BYTES = 8
/** Images with a common magic in front. A pre-dump's own version is 0 before CRIU 4.3; it has the same images. */
const KNOWN_VERSION = 2
const PRE_DUMP_VERSION = 0

/** Throws `FORMAT`, also for images of a version that we do not know. */
export function decodeInventory(bytes: Buffer): Inventory {
  if (bytes.length < HEAD_BYTES || bytes.readUInt32LE(0) !== INVENTORY_MAGIC) {
    throw new Fault('FORMAT', 'not an inventory of CRIU')
  }
  const body = bytes.subarray(HEAD_BYTES)
  if (body.length !== bytes.readUInt32LE(4)) throw new Fault('FORMAT', 'a damaged inventory')
  const said = decodeOrFault('FORMAT', 'a damaged inventory', inventoryEntry, body)
  const { img_version: version = 0, pre_dump_mode: preDumpMode = 0, compress = 0 } = said
  const preDump = preDumpMode !== 0
  if (version !== KNOWN_VERSION && !(preDump && version === PRE_DUMP_VERSION)) {
    throw new Fault('FORMAT', `images of version ${version}, known is ${KNOWN_VERSION}`, {
      hint: 'another release of CRIU made them than those that this one knows',
    })
  }
  if (compress !== 0) {
    throw new Fault('FORMAT', 'compressed images are not understood', { hint: 'dump without --compress' })
  }
  return { preDump }
}
