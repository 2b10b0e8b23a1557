/**
 * The source's end of a hand-over: the images of one criu to one link, and then the agreement (see handover.ts).
 *
 * The target is heard all along: it may refuse, or go away, while CRIU has nothing to send. Whatever fails before CRIU
 * may kill the tasks makes it fail, by its gate or by its socket and pipes, and the tasks run on. From then on only
 * what really happens to the tasks counts.
 */
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { closedGate } from '../criu/action-script.ts'
import { runsScript } from '../criu/command-line.ts'
import type { IncomingDump } from '../criu/incoming-dump.ts'
import { type WatchedTree, watchTree } from '../criu/process-tree.ts'
import { warmUp } from '../criu/warm-up.ts'
import { Fault } from '../fault.ts'
import { hex64 } from '../format/digest.ts'
import type { Fate, Until, Verdict } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import { TOKEN_BYTES } from '../format/wire.ts'
import { openCriuTimeout } from '../stream/criu-timeout.ts'
import { DedupSender } from '../stream/dedup-send.ts'
import type { FrameWriter } from '../stream/frames.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { type SendOptions, sendSnapshot } from '../stream/send.ts'
import { resumableLink, singleLink } from '../stream/source-link.ts'
import type { Snapshot } from '../stream/summary.ts'
import type { Tuning } from '../stream/tuning.ts'
import { defer, rejectAfter, rejectWhenAborted } from '../stream/wait.ts'
import { tasksRunOn } from './outcome.ts'
import { type SourceEvent, type SourceState, sourceAfter, verdictOf } from './state-machine.ts'
import { readAnswers, type TargetAnswers } from './target-answers.ts'
import { forgetVerdict, markLetGo, type PendingVerdict, verdictPending, writePendingVerdict } from './verdict-log.ts'

export interface HandoverOptions {
  id: SnapshotId
  until: Until
  /** The dump was asked to leave the tasks: then it is a copy. Else one whose tasks run on has failed. */
  leaves: boolean
  /** Where the gate's script is. */
  gates: string
  /** Where the verdict is kept. */
  directory: string
  /** Rejects with `signal`. */
  connect: (signal: AbortSignal) => Promise<Link>
  /** The target lets us go on over a new link where one broke. */
  resumes?: boolean
  tuning?: Tuning | undefined
  /** The snapshot is the last of a chain. */
  layer?: SendOptions['layer']
  /** From the last image to the target's answer; how long there may be no link; how long criu may say nothing. */
  timeoutMs: number
  signal: AbortSignal
  /** Called when it has failed, before the target has taken note. */
  onFailed?: (reason: Error) => void
  /** Called for progress. */
  onBytes?: (bytes: number) => void
}

export interface HandedOver {
  snapshot: Snapshot
  /** Bytes of pages that the target had. */
  spared?: number | undefined
  verdict: Verdict
  /** What became of the target's tasks; undefined if it could not be told: then `owed` is still on disk. */
  fate: Fate | undefined
  owed: PendingVerdict
}

/** A hand-over that failed, with the debt that it leaves. */
export interface HandoverFailed {
  reason: unknown
  owed: PendingVerdict | undefined
}

/**
 * Sends what this criu dumps, and hands the process over. Returns the debt if something failed
 * before the tasks were gone.
 */
export async function handOver(criu: IncomingDump, options: HandoverOptions): Promise<HandedOver | HandoverFailed> {
  const { id, until, leaves, gates, directory, connect, layer, timeoutMs, signal } = options
  const { pid, bytes } = criu
  const known = options.tuning?.dedup && new DedupSender(options.tuning.dedup)
  const token = randomBytes(TOKEN_BYTES)
  const gate = closedGate(gates, pid, 'post-dump')
  let atGate = false
  const whenHeld = gate.held.then(() => {
    atGate = true
  })
  whenHeld.catch(() => {})
  const waitsForUs = runsScript(pid, join(gates, 'post-dump'))
  const stop = new AbortController()
  let source: ImageSource | undefined
  /** Whoever dumps waits for nobody any more, or only at our gate. */
  let written = false
  const goesOn = defer<void>()
  const silence = openCriuTimeout(timeoutMs, (reason) => {
    // What kills its tasks is at work; and what may kill them at any moment is not to be told that they stay.
    if (tree?.isDying()) silence.heard()
    else if (written && !waitsForUs) goesOn.resolve()
    else {
      stop.abort(reason)
      source?.destroy(reason)
    }
  })
  const outside = (): void => stop.abort(signal.reason)
  signal.addEventListener('abort', outside)
  const line = options.resumes
    ? resumableLink(id, token, until, connect, timeoutMs)
    : singleLink(connect(stop.signal), timeoutMs, stop)
  const { writer } = line
  let sending = true
  let stuck = false
  // A link that does not move must not hold up the end, nor CRIU.
  const cut = (): void => {
    stuck = sending
    if (stuck) line.cut(stop.signal.reason as Error)
  }
  stop.signal.addEventListener('abort', () => globalThis.setTimeout(cut, GRACE_MS).unref())
  if (signal.aborted) outside()
  const talk = line.reader.then((reader) => readAnswers(reader, line.greeted, known))
  const broken = talk.then((said) => said.offer)
  broken.catch((reason: unknown) => stop.abort(reason))

  if (bytes !== undefined) {
    const reserved = talk.then((said) => said.reserved)
    const prepared = Promise.all([reserved, known?.ready])
    const ready = Promise.race([prepared, rejectAfter(timeoutMs, NO_MEMORY, stop.signal)])
    silence
      .during(Promise.all([ready, warmUp()]))
      .then(criu.open)
      .catch((reason: unknown) => stop.abort(reason))
  }

  let state: SourceState = 'offering'
  let decide: (verdict: Verdict) => void
  const verdict = new Promise<Verdict>((resolve) => {
    decide = resolve
  })
  const step = (event: SourceEvent): void => {
    state = sourceAfter(state, event)
    const decided = verdictOf(state)
    if (decided !== undefined) decide(decided)
  }
  let tree: WatchedTree | undefined
  let owed: PendingVerdict | undefined
  const watch = (): void => {
    tree = watchTree(pid)
    void tree.fate.then((fate) => step(fate === 'dead' ? 'dead' : leaves ? 'left' : 'ran on'))
  }
  // One that waited for us before the freeze waits for us before it kills; only a link that can go on acknowledges each image.
  const byReference = options.tuning?.unchecked === true && options.resumes === true && bytes !== undefined
  const taken = async (images: number): Promise<void> => {
    const said = await Promise.race([talk, rejectWhenAborted(stop.signal)])
    const what = 'the target did not take the images'
    const all = Promise.race([
      said.taken(images),
      rejectAfter(timeoutMs, what, stop.signal),
      rejectWhenAborted(stop.signal),
    ])
    await silence.during(all)
  }
  /** What was passed on by reference is what it was, if the target has it all while the tasks are still frozen. */
  const stillThere = async (images: number): Promise<void> => {
    const atLast = rejectAfter(timeoutMs, 'criu did not come to its post-dump', stop.signal)
    await Promise.race([Promise.all([taken(images), whenHeld]), atLast, rejectWhenAborted(stop.signal), gone()])
    if (tree?.frozen() !== true) throw changed()
  }
  const gone = async (): Promise<void> => {
    await tree?.fate
    throw changed()
  }
  const what = `the target did not ${until === 'sealed' ? 'seal the snapshot' : 'restore the tasks'}`
  // Before it has written all: a criu without our script kills the tasks then, whatever we say.
  const objection = pid < 1 ? cannotSeeTasks() : verdictPending(directory, id)
  if (objection !== undefined) stop.abort(objection)
  const wrote = (): void => {
    written = true
  }
  const complete = Promise.race([whenHeld, goesOn.promise])
  try {
    source = criu.images({ complete, taken, answered: wrote })
    const snapshot = await sendSnapshot(writer, id, onFirstImage(source, watch), {
      ...options.tuning,
      silence,
      onDrained: async () => wrote(),
      signal: stop.signal,
      onFail: (reason) => stop.abort(reason),
      until,
      reserve: bytes,
      layer,
      frozen: byReference,
      known,
      ...(options.onBytes && { onBytes: options.onBytes }),
      greeted: line.greeted,
      confirm: async (images) => {
        if (byReference) await stillThere(images)
        const watched = tree as WatchedTree
        if (watched.tasks.length === 0 && atGate) throw cannotSeeTasks()
        if (verdictOf(state) === 'drop') throw tasksRunOn()
        // Without our script nobody asks us.
        owed = writePendingVerdict(directory, id, token, watched, atGate ? 'held' : 'let go')
      },
    }).finally(() => {
      sending = false
    })
    const said = await talk
    await Promise.race([
      agreement(said, until, snapshot),
      rejectAfter(timeoutMs, what, stop.signal),
      rejectWhenAborted(stop.signal),
    ])
    const debt = owed as unknown as PendingVerdict
    markLetGo(debt)
    step('agreed')
    gate.open()
    const decided = await verdict
    const fate = await Promise.race([
      tellThere(writer, said, { id, token, verdict: decided }),
      rejectAfter(timeoutMs, 'no answer', stop.signal),
    ]).catch(() => undefined)
    if (fate !== undefined) forgetVerdict(debt)
    return { snapshot, spared: known?.spared, verdict: decided, fate, owed: debt }
  } catch (error) {
    step('failed')
    gate.shut()
    const lastWord = Promise.race([
      broken.catch((reason: unknown) => reason),
      setTimeout(stuck ? 0 : ANSWER_MS, undefined, { ref: false }),
    ])
    const reason = isLink(error) ? refusalOr(error, await lastWord) : error
    options.onFailed?.(reason as Error)
    // Closing over its unread acks would reset the link before it has read that the dump failed.
    await lastWord
    if (owed === undefined) return { reason, owed }
    const told = await Promise.race([
      Promise.all([talk, verdict]).then(([said, decided]) => tellThere(writer, said, { id, token, verdict: decided })),
      setTimeout(ANSWER_MS, undefined, { ref: false }),
    ]).catch(() => undefined)
    if (told === undefined) return { reason, owed }
    forgetVerdict(owed)
    return { reason, owed: undefined }
  } finally {
    signal.removeEventListener('abort', outside)
    stop.abort(new Fault('ABORTED', 'over'))
    silence.close()
    line.destroy()
    tree?.close()
    gate.remove()
    criu.remove()
  }
}

const NO_MEMORY = 'the target did not make memory ready'

/** A criu whose tasks cannot be watched. */
export function cannotSeeTasks(): Fault {
  return new Fault('CRIU', 'cannot see the tasks that this criu dumps, and so not whether they die', {
    hint: 'run this command in the pid namespace of that criu',
  })
}

/** Calls `first` when CRIU opens its first image: by then the tree is frozen, and until CRIU has gone on it stays so. */
export function onFirstImage(source: ImageSource, first: () => void): ImageSource {
  async function* images(): AsyncGenerator<OpenImage> {
    let begun = false
    for await (const image of source.images) {
      if (!begun) first()
      begun = true
      yield image
    }
  }
  return { ...source, images: images(), destroy: (reason) => source.destroy(reason) }
}

function changed(): Fault {
  return new Fault('CRIU', 'the tasks did not stay frozen while their pages were passed on', {
    hint: 'dump again; without --no-checksum pages are copied at once',
  })
}

/** Resolves when the target has what `until` asks for. Throws `DIGEST` where it is not what was sent. */
async function agreement(said: TargetAnswers, until: Until, sent: Snapshot): Promise<void> {
  const digest = await said.sealed
  if (digest !== sent.digest) {
    throw new Fault('DIGEST', `the target sealed ${hex64(digest)}, sent was ${hex64(sent.digest)}`)
  }
  if (until === 'running') await said.ready
}

async function tellThere(
  writer: FrameWriter,
  said: TargetAnswers,
  verdict: { id: SnapshotId; token: Buffer; verdict: Verdict },
): Promise<Fate> {
  await writer.send({ type: 'verdict', ...verdict })
  return said.fate
}

/** How long the target may take to read that the dump failed. */
const GRACE_MS = 500

/** How long the target may take to answer a dump that failed. */
const ANSWER_MS = 5000

function isLink(error: unknown): boolean {
  return error instanceof Fault && error.code === 'LINK'
}

/** Where the target closed the link on us, its refusal says more than our broken write. */
function refusalOr(error: unknown, word: unknown): unknown {
  const refused = word instanceof Fault && (word.code !== 'LINK' || word.hint !== undefined)
  return refused ? word : error
}
