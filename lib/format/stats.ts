import { Fault } from '../fault.ts'
import { decodeOrFault, dumpStatsEntry, statsEntry } from './criu-messages.ts'

/** From CRIU's `stats-dump`, in microseconds (images/stats.proto, 4.1.1). */
export interface DumpStats {
  freezingTime: number
  frozenTime: number
  memdumpTime: number
  memwriteTime: number
}

const SERVICE_MAGIC = 0x55105940
const STATS_MAGIC = 0x57093306
const HEAD_BYTES = 12

/** Times that are not there are 0. Throws `FORMAT`. */
export function decodeDumpStats(bytes: Buffer): DumpStats {
  const magic = bytes.length < HEAD_BYTES ? [] : [bytes.readUInt32LE(0), bytes.readUInt32LE(4)]
  if (magic[0] !== SERVICE_MAGIC || magic[1] !== STATS_MAGIC) {
    throw new Fault('FORMAT', 'not a stats-dump of CRIU')
  }
  const damaged = ['FORMAT', 'a damaged stats-dump of CRIU'] as const
  const { dump } = decodeOrFault(...damaged, statsEntry, bytes.subarray(HEAD_BYTES))
  const stats = dump === undefined ? {} : decodeOrFault(...damaged, dumpStatsEntry, dump)
  return {
    freezingTime: stats.freezing_time ?? 0,
    frozenTime: stats.frozen_time ?? 0,
    memdumpTime: stats.memdump_time ?? 0,
    memwriteTime: stats.memwrite_time ?? 0,
  }
}
