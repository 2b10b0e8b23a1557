/** The first 24 bytes of each direction: what this is, and which release reads it. docs/protocol/wire.md, Basics. */
import { crc32 } from 'node:zlib'
import { Fault } from '../fault.ts'

/** A byte above 127 and a CR LF show a link that is not 8-bit clean, as in PNG. */
export const MAGIC = Buffer.from('93464552 52590d0a'.replaceAll(' ', ''), 'hex')
export const VERSION = 1
/** Feature bits that this release understands; none are defined yet. */
export const FEATURES = 0

export const PREAMBLE_BYTES = 24
export function encodePreamble(): Buffer {
  const out = Buffer.alloc(PREAMBLE_BYTES)
  MAGIC.copy(out)
  out.writeUInt16LE(VERSION, 8)
  out.writeUInt32LE(FEATURES, 12)
  out.writeUInt32LE(FEATURES, 16)
  out.writeUInt32LE(crc32(out.subarray(0, 20)), 20)
  return out
}

/** Throws `FORMAT` for something that is no ferry stream, `VERSION` for one that this release cannot read. */
export function checkPreamble(bytes: Buffer): void {
  if (!bytes.subarray(0, 8).equals(MAGIC)) {
    throw new Fault('FORMAT', 'this is not a criu-ferry stream', {
      hint: 'is the stream compressed, or did another program write to it?',
    })
  }
  if (crc32(bytes.subarray(0, 20)) !== bytes.readUInt32LE(20)) throw new Fault('FORMAT', 'damaged preamble')
  if (bytes.readUInt16LE(10) !== 0) throw new Fault('FORMAT', 'reserved bits are set')
  const version = bytes.readUInt16LE(8)
  const unknown = bytes.readUInt32LE(12) & ~FEATURES
  if (version !== VERSION || unknown !== 0) {
    throw new Fault('VERSION', `the stream has version ${version}, features ${unknown >>> 0} that are unknown here`, {
      hint: 'use the same release of criu-ferry at both ends',
    })
  }
}
