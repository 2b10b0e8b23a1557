/**
 * Recovers held restores whose holder is gone. A copy that is held may be the only one, so a holder that is killed or
 * stopped leaves it at its gate, and the next process in the same directory takes it over by the label on the gate.
 */

import { type OrphanedGate, recoverGates } from '../criu/action-script.ts'
import { type FollowedRestore, followRestore } from '../criu/restore.ts'
import { abandoned, type PrivateDirectory, privateDirectory } from '../criu/work-directory.ts'
import { NO_TOKEN } from '../format/frame.ts'
import { type SnapshotId, snapshotId } from '../format/names.ts'
import { openProcess } from '../kernel/process.ts'

/** The prefix of the directories of our own restores. */
const HELD = '.ferry-restore-'

/** Makes a directory in `place` for the gate of one restore. Throws `IO`. */
export function restoreDirectory(place: string): PrivateDirectory {
  return privateDirectory(place, HELD)
}

/** The label of a restore's gate. `token`: what a verdict must show. */
export function restoreLabel(id: SnapshotId, token: Buffer = NO_TOKEN): string {
  return `${id} ${token.toString('hex')}`
}

/** A restore that was taken over: without images, but alive. */
export interface RecoveredRestore {
  id: SnapshotId
  token: Buffer
  held: FollowedRestore
  /** Waits until its criu has ended, and removes its gate and directory. */
  finish: () => Promise<void>
}

/**
 * Takes over the restores in `place` whose holders are gone, and removes the directories of those that have ended; or
 * only the restore of `id`.
 */
export function recoverRestores(place: string, id?: SnapshotId): RecoveredRestore[] {
  const isWanted = id && ((label: string): boolean => label.split(' ')[0] === id)
  const inPlace = recoverGates(place, isWanted).map((orphan) => recovered(orphan))
  const inOwnDirectory = abandoned(place, new RegExp(`^\\${HELD}`)).flatMap((directory) => {
    const [orphan] = recoverGates(directory.path, isWanted)
    if (orphan !== undefined) return [recovered(orphan, directory)]
    if (id === undefined) directory.remove()
    else directory.release()
    return []
  })
  return [...inPlace, ...inOwnDirectory]
}

function recovered({ pid, gate, label }: OrphanedGate, directory?: PrivateDirectory): RecoveredRestore {
  const criu = openProcess(pid)
  const ended = criu?.ended ?? Promise.resolve()
  const held = followRestore(gate, { pid, ended })
  held.noteTasks()
  const [name = '', token = ''] = label.split(' ')
  return {
    id: snapshotId(name),
    token: Buffer.from(token, 'hex'),
    held,
    async finish() {
      await ended
      gate.remove()
      directory?.remove()
      criu?.close()
    },
  }
}
