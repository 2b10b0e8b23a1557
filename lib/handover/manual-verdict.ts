/** Gives the verdict of a person, where the source cannot give it. */
import { existsSync, rmSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { connectWithin } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import type { Fate, Verdict } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Fd } from '../kernel/fd.ts'
import { fdLink } from '../stream/fd-link.ts'
import { sendVerdict } from './deliver-verdict.ts'
import { type RecoveredRestore, recoverRestores } from './recover.ts'
import { holdSocket } from './standalone-target.ts'
import { openTargetHandover } from './target.ts'

/**
 * Gives the verdict to who listens at the socket `name` in `directory`, or, where its holder is gone, to the copy itself. Throws
 * `MISSING`, what it refuses with, `IO` where this user may not ask, and `USAGE` for a directory that others can
 * change.
 */
export async function giveVerdict(
  directory: string,
  name: string,
  { id, verdict }: { id: SnapshotId; verdict: Verdict },
): Promise<Fate> {
  const place = resolve(directory)
  let socket: Fd
  try {
    socket = connectWithin(place, name, `nobody holds a snapshot ${id} in ${directory}`)
  } catch (error) {
    if (!(error instanceof Fault && error.code === 'MISSING')) throw error
    const [left] = existsSync(place) ? recoverRestores(place, id) : []
    if (left === undefined) throw error
    if (name === holdSocket(id)) rmSync(join(place, name), { force: true })
    return tellCopy(left, verdict)
  }
  return sendVerdict(fdLink(socket, 'the holder', 'socket'), { id, verdict })
}

async function tellCopy({ id, held, ended, remove }: RecoveredRestore, verdict: Verdict): Promise<Fate> {
  const arrival = openTargetHandover(id, () => {})
  arrival.restore()
  arrival.restored(held)
  try {
    return await arrival.decide(verdict)
  } finally {
    await ended
    remove()
  }
}

/** The same, for a person: another outcome than the one asked for is `REFUSED`. */
export async function giveManualVerdict(
  directory: string,
  name: string,
  said: Parameters<typeof giveVerdict>[2],
): Promise<void> {
  const fate = await giveVerdict(directory, name, said)
  if ((fate === 'dropped') === (said.verdict === 'drop')) return
  throw new Fault('REFUSED', `snapshot ${said.id} is decided already: ${fate}`)
}
