import pb from 'protobufjs/minimal.js'
import { Fault } from '../fault.ts'

/** From CRIU's `stats-dump`, in microseconds (images/stats.proto, 4.1.1). */
export interface DumpStats {
  freezingTime: number
  frozenTime: number
  memdumpTime: number
  memwriteTime: number
}

const SERVICE_MAGIC = 0x55105940
const STATS_MAGIC = 0x57093306

/** Throws `FORMAT`. */
export function decodeDumpStats(bytes: Buffer): DumpStats {
  const stats: DumpStats = { freezingTime: 0, frozenTime: 0, memdumpTime: 0, memwriteTime: 0 }
  if (bytes.length < 12 || bytes.readUInt32LE(0) !== SERVICE_MAGIC || bytes.readUInt32LE(4) !== STATS_MAGIC) {
    throw new Fault('FORMAT', 'not a stats-dump of CRIU')
  }
  const names = new Map([
    [1, 'freezingTime'],
    [2, 'frozenTime'],
    [3, 'memdumpTime'],
    [4, 'memwriteTime'],
  ] as const)
  try {
    const outer = pb.Reader.create(bytes.subarray(12))
    while (outer.pos < outer.len) {
      const tag = outer.uint32()
      if (tag !== 10) {
        outer.skipType(tag & 7)
        continue
      }
      const inner = pb.Reader.create(outer.bytes())
      while (inner.pos < inner.len) {
        const field = inner.uint32()
        const name = names.get((field >>> 3) as 1 | 2 | 3 | 4)
        if (name !== undefined && (field & 7) === 0) stats[name] = inner.uint32()
        else inner.skipType(field & 7)
      }
    }
  } catch (cause) {
    throw new Fault('FORMAT', 'a damaged stats-dump of CRIU', { cause })
  }
  return stats
}
