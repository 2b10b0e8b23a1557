/** The room where what a source owes is paid: the verdict stays on disk until the target has answered it. */
import { Fault } from '../fault.ts'
import type { Report } from '../progress.ts'
import type { Link } from '../stream/link.ts'
import { type Delivered, deliver, type Owed, settleOwed } from './verdict-log.ts'

export interface Payment {
  connect: (signal: AbortSignal) => Promise<Link>
  report: Report
  /** Leaves the debt on disk. */
  signal: AbortSignal
}

/**
 * Delivers a verdict that the target does not know yet, and forgets it. Throws, and keeps it, with `MISSING` where the tasks
 * are gone and the target does not know them, and with the signal's reason.
 */
export async function pay(owed: Owed, { connect, report, signal }: Payment): Promise<Delivered> {
  const { id } = owed
  report({ event: 'waiting', what: `the target, which must learn what became of snapshot ${id}` })
  const delivered = await deliver(owed, connect, signal).catch((error: unknown) => {
    throw error instanceof Fault && error.code === 'MISSING' ? unknownThere(owed, error) : error
  })
  settleOwed(owed)
  return delivered
}

/** The target may have run it and forgotten; it may also be another one than before, or have died with the copy. */
function unknownThere({ id, path }: Owed, cause: Fault): Fault {
  return new Fault('MISSING', `the process is gone from here, and the target does not know snapshot ${id}`, {
    hint: `look whether it runs there: it may be lost; when you know, rm ${path}`,
    cause,
  })
}
