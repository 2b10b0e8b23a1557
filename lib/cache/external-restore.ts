/** A `criu restore` that somebody else started in the cache's work directory. */
import { closedGate, type Gate } from '../criu/action-script.ts'
import { runsScript } from '../criu/command-line.ts'
import { serve } from '../criu/serve.ts'
import { reportSmallPipes } from '../criu/small-pipes.ts'
import { asFault } from '../format/refusal.ts'
import type { Fd } from '../kernel/fd.ts'
import { openProcess } from '../kernel/process.ts'
import { peerPid } from '../kernel/unix.ts'
import type { SealedSnapshot } from '../store/snapshots.ts'
import type { Piece } from '../store/stored-image.ts'
import type { CacheContext } from './context.ts'
import type { AdmittedRestore } from './handovers.ts'

/** Serves it. One that has our action script can be held, and so may come before the verdict. Reports what fails. */
export async function serveExternalRestore(
  socket: Fd,
  script: string,
  { snapshots, handovers, options }: CacheContext,
): Promise<void> {
  const { id, timeoutMs, report, directory } = options
  const criu = openProcess(peerPid(socket))
  let gate: Gate | undefined
  let found: SealedSnapshot | undefined
  let lead: AdmittedRestore | undefined
  let done = (): void => {}
  let begun = performance.now()
  let early = false
  const choose = async (): Promise<SealedSnapshot['images']> => {
    if (found !== undefined) return found.images
    handovers.refuseIfRunning(id)
    if (!snapshots.has(id)) report({ event: 'waiting', what: id ?? 'the newest snapshot' })
    const next = await snapshots.find(id, timeoutMs, undefined, { early: gate !== undefined })
    lead = handovers.admit(next.id, gate, criu)
    found = next
    done = found.use()
    // An archive stays, for whoever asks next.
    const state = handovers.get(next.id)?.state
    early = options.releaseEarly && gate !== undefined && (state === 'restoring' || state === 'reviving')
    begun = performance.now()
    return found.images
  }
  const onTaken = (piece: Piece): void => {
    if (early) found?.release(piece)
  }
  try {
    if (criu !== undefined && runsScript(criu.pid, script)) gate = closedGate(directory, criu.pid, 'post-restore')
    const served = await serve(socket, choose, { onTaken }).finally(() => lead?.finish())
    const ms = performance.now() - begun
    reportSmallPipes(report)
    if (found !== undefined) {
      report({ event: 'served', id: found.id, images: served.images.length, bytes: served.bytes, ms })
    }
  } catch (error) {
    const what = found === undefined ? 'a restore' : `the restore of ${found.id}`
    report({ event: 'failed', what, fault: asFault(error) })
  } finally {
    done()
    gate?.remove()
    criu?.close()
  }
}
