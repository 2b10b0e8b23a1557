/** How much memory images may take: for the commands that keep them. */
import { totalmem } from 'node:os'
import { Fault } from '../fault.ts'
import { parseSize } from '../size.ts'
import type { ValuesOf } from './common-options.ts'

export const memoryOptions = {
  'max-memory': { type: 'string' },
  reserve: { type: 'string' },
} as const

/** The part of `totalmem` that images may take if nobody says how much. */
const SHARE = 0.8

export const memoryHelp = `      --max-memory SZ  most memory for images (default: ${SHARE * 100} % of what this
                       machine has, or our control group)
      --reserve SIZE   allocate this much of it before images come, to avoid page faults`

/** Both in bytes. Throws `USAGE`. */
export function readMemory(values: ValuesOf<typeof memoryOptions>) {
  const most = values['max-memory']
  const maxMemory = most === undefined ? Math.floor(memoryHere() * SHARE) : parseSize(most)
  const reserve = values.reserve === undefined ? 0 : parseSize(values.reserve)
  if (reserve <= maxMemory) return { maxMemory, reserve }
  throw new Fault('USAGE', `--reserve ${values.reserve} is more than --max-memory`, { hint: 'raise --max-memory' })
}

/**
 * Bytes of memory of this machine, or of our control group if that has a limit. Without one `constrainedMemory` is 0,
 * or larger than any machine.
 */
function memoryHere(): number {
  return Math.min(totalmem(), process.constrainedMemory() || totalmem())
}
