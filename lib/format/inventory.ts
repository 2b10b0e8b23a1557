/**
 * CRIU's `inventory.img`, as far as it says whether the other images are of a kind that we understand: its magic u32, a size u32, and
 * protobuf with img_version = 1, pre_dump_mode = 9 and, after CRIU 4.3, compress = 15.
 */
import pb from 'protobufjs/minimal.js'
import { Fault } from '../fault.ts'

export interface Inventory {
  /** Of a pre-dump: there are pages, and no process. */
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
  const { version, preDumpMode, compress } = decodeFields(body)
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

function decodeFields(body: Uint8Array): { version: number; preDumpMode: number; compress: number } {
  const fields = { version: 0, preDumpMode: 0, compress: 0 }
  const names = new Map([
    [1, 'version'],
    [9, 'preDumpMode'],
    [15, 'compress'],
  ] as const)
  try {
    const reader = pb.Reader.create(body)
    while (reader.pos < reader.len) {
      const tag = reader.uint32()
      const name = names.get((tag >>> 3) as 1 | 9 | 15)
      if (name !== undefined && (tag & 7) === 0) fields[name] = reader.uint32()
      else reader.skipType(tag & 7)
    }
  } catch (cause) {
    throw new Fault('FORMAT', 'a damaged inventory', { cause })
  }
  return fields
}
