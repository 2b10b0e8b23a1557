import type { Fault } from '../fault.ts'
import type { RefusalCode } from '../format/words.ts'

const passedOn: readonly string[] = ['FAILED_DUMP', 'EXISTS', 'MISSING', 'MEMORY', 'TIMEOUT', 'DIGEST', 'ABORTED']

/** The code with which a fault of ours crosses the link. */
export function refusalOf(fault: Fault): RefusalCode {
  return passedOn.includes(fault.code) ? (fault.code as RefusalCode) : 'REFUSED'
}
