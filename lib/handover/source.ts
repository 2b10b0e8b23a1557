/**
 * The source's end of a hand-over: it sends the images of one criu over one link, and then both ends agree which of the
 * two copies is the process (see state-machine.ts).
 *
 * The target is listened to all the time: it may refuse, or go away, while CRIU has nothing to send. A failure before
 * CRIU may kill the tasks makes the dump fail, by the gate or by CRIU's socket and pipes, and the tasks run on. After
 * that moment only what happens to the tasks counts.
 */
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { closedGate, type Gate } from '../criu/action-script.ts'
import { runsScript } from '../criu/command-line.ts'
import type { IncomingDump } from '../criu/incoming-dump.ts'
import { type WatchedTree, watchTree } from '../criu/process-tree.ts'
import { warmUp } from '../criu/warm-up.ts'
import { Fault } from '../fault.ts'
import type { Fate, Until, Verdict } from '../format/enums.ts'
import { TOKEN_BYTES } from '../format/frame.ts'
import type { SnapshotId } from '../format/names.ts'
import { type CriuTimeout, openCriuTimeout } from '../stream/criu-timeout.ts'
import { DedupSender } from '../stream/dedup-send.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { type SendOptions, sendSnapshot } from '../stream/send.ts'
import { resumableLink, type SourceLink, singleLink } from '../stream/source-link.ts'
import type { Snapshot } from '../stream/summary.ts'
import type { Tuning } from '../stream/tuning.ts'
import { abortWith, defer, rejectAfter, rejectWhenAborted } from '../stream/wait.ts'
import { tasksRunOnFault } from './outcome.ts'
import { type SourceEvent, type SourceState, sourceAfter, verdictOf } from './state-machine.ts'
import { readAnswers, type TargetAnswers } from './target-answers.ts'
import {
  forgetVerdict,
  markLetGo,
  type PendingVerdict,
  verdictPendingFault,
  writePendingVerdict,
} from './verdict-log.ts'

export interface HandoverOptions {
  id: SnapshotId
  until: Until
  /** CRIU was asked to leave the tasks: the snapshot is a copy. Otherwise a dump whose tasks run on has failed. */
  leaves: boolean
  /** The directory of the action script, and of the gate. */
  gates: string
  /** Where the verdict is written down. */
  directory: string
  /** Rejects with the signal's reason. */
  connect: (signal: AbortSignal) => Promise<Link>
  /** The target lets a source go on over a new link where one broke. */
  resumes?: boolean
  tuning?: Tuning | undefined
  /** The snapshot is the last of a chain. */
  layer?: SendOptions['layer']
  /** The most time from the last image to the target's answer, without a link, and without a word from criu. */
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
  /** What became of the target's tasks; undefined if the target was not told: then `pending` is still on disk. */
  fate: Fate | undefined
  pending: PendingVerdict
}

/** A hand-over that failed, with the verdict that the target has not learned, which is still on disk. */
export interface HandoverFailed {
  reason: unknown
  pending: PendingVerdict | undefined
}

/**
 * Sends what this criu dumps, and hands the process over. What fails before the tasks are gone is returned, with the
 * verdict that the target has not learned.
 */
export async function handOver(criu: IncomingDump, options: HandoverOptions): Promise<HandedOver | HandoverFailed> {
  return new SourceHandover(criu, options).run()
}

const NO_MEMORY = 'the target did not make memory ready'
const NOT_TAKEN = 'the target did not take the images'

/** How long the target may take to read that the dump failed. */
const GRACE_MS = 500

/** How long the target may take to answer a dump that failed. */
const ANSWER_MS = 5000

/**
 * One hand-over at the source. `run` sends the images, agrees with the target, and lets CRIU go; or makes the dump
 * fail.
 */
class SourceHandover {
  readonly #criu: IncomingDump
  readonly #options: HandoverOptions
  /** Proves to the target, on any link, that a verdict is ours. */
  readonly #token = randomBytes(TOKEN_BYTES)
  /** Where criu waits at post-dump, if it runs our action script. */
  readonly #gate: Gate
  /** Resolves when criu waits at the gate. */
  readonly #held: Promise<void>
  #isHeld = false
  /** criu runs our action script: it kills no task before the gate opens. */
  readonly #waitsForUs: boolean
  /** Aborted by what fails here, and by the caller's signal. */
  readonly #stop = new AbortController()
  /** Stops listening to the caller's signal. */
  readonly #release: () => void
  /** Rejects when `#stop` is aborted. */
  readonly #stopped: Promise<never>
  readonly #criuTimeout: CriuTimeout
  /** Finds the pages that the target has. */
  readonly #dedup: DedupSender | undefined
  readonly #link: SourceLink
  readonly #answers: Promise<TargetAnswers>
  /** Rejects when the target refuses, or goes away. */
  readonly #refusal: Promise<never>
  /**
   * Pages may pass by reference: criu waited for us before the freeze, and so waits for us before it kills; and the
   * target acknowledges each image, as only a link that can go on makes it do.
   */
  readonly #byReference: boolean
  #state: SourceState = 'offering'
  /** Resolves when the state decides. */
  readonly #verdict = defer<Verdict>()
  /** Resolves when a criu without our script, which waits for nobody once it has written all, has fallen silent. */
  readonly #goesOn = defer<void>()
  /** criu has written all: it waits for nobody any more, or only at our gate. */
  #written = false
  #source: ImageSource | undefined
  /** Set at the first image. */
  #tree: WatchedTree | undefined
  /** Set just before the target may agree. */
  #pending: PendingVerdict | undefined
  #sending = true
  /** The link did not move, and was cut. */
  #stuck = false

  constructor(criu: IncomingDump, options: HandoverOptions) {
    const { id, until, gates, connect, resumes, tuning, timeoutMs } = options
    this.#criu = criu
    this.#options = options
    this.#dedup = tuning?.dedup && new DedupSender(tuning.dedup)
    this.#byReference = tuning?.unchecked === true && resumes === true && criu.bytes !== undefined
    this.#gate = closedGate(gates, criu.pid, 'post-dump')
    this.#held = this.#gate.held.then(() => {
      this.#isHeld = true
    })
    this.#held.catch(() => {})
    this.#waitsForUs = runsScript(criu.pid, join(gates, 'post-dump'))
    const { signal } = this.#stop
    this.#release = abortWith(this.#stop, options.signal)
    this.#stopped = rejectWhenAborted(signal)
    this.#stopped.catch(() => globalThis.setTimeout(() => this.#cutIfStuck(), GRACE_MS).unref())
    this.#criuTimeout = openCriuTimeout(timeoutMs, (reason) => this.#onSilence(reason))
    const connected = (): Promise<Link> => (signal.aborted ? Promise.reject(signal.reason) : connect(signal))
    this.#link = resumes
      ? resumableLink({ id, token: this.#token, until, connect, timeoutMs })
      : singleLink(connected(), timeoutMs, this.#stop)
    this.#answers = this.#link.reader.then((reader) => readAnswers(reader, this.#link.greeted, this.#dedup))
    this.#refusal = this.#answers.then((answers) => answers.offer)
    this.#refusal.catch((reason: unknown) => this.#stop.abort(reason))
  }

  async run(): Promise<HandedOver | HandoverFailed> {
    try {
      this.#openWhenReady()
      this.#stopIfImpossible()
      const snapshot = await this.#send()
      await this.#agree(snapshot)
      return await this.#letGo(snapshot)
    } catch (error) {
      return await this.#takeBack(error)
    } finally {
      this.#close()
    }
  }

  /** A link that does not move must not hold up the end, nor CRIU. */
  #cutIfStuck(): void {
    this.#stuck = this.#sending
    if (this.#stuck) this.#link.cut(this.#stop.signal.reason as Error)
  }

  #onSilence(reason: Fault): void {
    // A criu that kills its tasks is at work; one that may kill them at any moment must not be told that they stay.
    if (this.#tree?.isDying()) this.#criuTimeout.heard()
    else if (this.#written && !this.#waitsForUs) this.#goesOn.resolve()
    else {
      this.#stop.abort(reason)
      this.#source?.destroy(reason)
    }
  }

  /** Waits for `work`. Throws `TIMEOUT`, which says `what`, and the signal's reason. */
  #inTime<Result>(work: Promise<Result>, what: string): Promise<Result> {
    return Promise.race([work, rejectAfter(this.#options.timeoutMs, what, this.#stop.signal), this.#stopped])
  }

  /** Lets a criu that waits for us freeze the tasks when the target has memory ready. */
  #openWhenReady(): void {
    if (this.#criu.bytes === undefined) return
    const reserved = this.#answers.then((answers) => answers.reserved)
    const ready = this.#inTime(Promise.all([reserved, this.#dedup?.ready]), NO_MEMORY)
    this.#criuTimeout
      .during(Promise.all([ready, warmUp()]))
      .then(this.#criu.open)
      .catch((reason: unknown) => this.#stop.abort(reason))
  }

  /** Must come before CRIU has written all: a criu without our script kills the tasks then, whatever we say. */
  #stopIfImpossible(): void {
    const { id, directory } = this.#options
    const objection = this.#criu.pid < 1 ? unseenTasksFault() : verdictPendingFault(directory, id)
    if (objection !== undefined) this.#stop.abort(objection)
  }

  async #send(): Promise<Snapshot> {
    const { id, until, layer, tuning, onBytes } = this.#options
    const complete = Promise.race([this.#held, this.#goesOn.promise])
    complete.catch(() => {})
    const onWritten = (): void => {
      this.#written = true
    }
    this.#source = this.#criu.images({ complete, taken: (images) => this.#taken(images), answered: onWritten })
    const images = onFirstImage(this.#source, () => this.#watch())
    try {
      return await sendSnapshot(this.#link.writer, id, images, {
        ...tuning,
        silence: this.#criuTimeout,
        onDrained: async () => onWritten(),
        signal: this.#stop.signal,
        onFail: (reason) => this.#stop.abort(reason),
        until,
        reserve: this.#criu.bytes,
        layer,
        frozen: this.#byReference,
        known: this.#dedup,
        ...(onBytes && { onBytes }),
        greeted: this.#link.greeted,
        confirm: (images) => this.#confirm(images),
      })
    } finally {
      this.#sending = false
    }
  }

  #watch(): void {
    this.#tree = watchTree(this.#criu.pid)
    void this.#tree.fate.then((fate) => {
      this.#step(fate === 'dead' ? 'dead' : this.#options.leaves ? 'left' : 'ran on')
    })
  }

  #step(event: SourceEvent): void {
    this.#state = sourceAfter(this.#state, event)
    const verdict = verdictOf(this.#state)
    if (verdict !== undefined) this.#verdict.resolve(verdict)
  }

  /** Resolves when the target has acknowledged so many images. */
  async #taken(images: number): Promise<void> {
    const answers = await Promise.race([this.#answers, this.#stopped])
    await this.#criuTimeout.during(this.#inTime(answers.taken(images), NOT_TAKEN))
  }

  /** Writes the verdict down before the end frame is sent, for the target can be ready from then on. */
  async #confirm(images: number): Promise<void> {
    if (this.#byReference) await this.#checkStillFrozen(images)
    const tree = this.#tree as WatchedTree
    if (tree.tasks.length === 0 && this.#isHeld) throw unseenTasksFault()
    if (verdictOf(this.#state) === 'drop') throw tasksRunOnFault()
    const { id, directory } = this.#options
    // A criu without our script does not ask us: its tasks decide already.
    this.#pending = writePendingVerdict(directory, id, this.#token, tree, this.#isHeld ? 'held' : 'let go')
  }

  /**
   * Pages that were passed on by reference are unchanged if the target has them all while the tasks are still frozen.
   */
  async #checkStillFrozen(images: number): Promise<void> {
    const ended = this.#tree?.fate.then(() => Promise.reject(changedFault()))
    const taken = Promise.all([this.#taken(images), this.#held])
    await this.#inTime(Promise.race([taken, ended]), 'criu did not come to its post-dump')
    if (this.#tree?.frozen() !== true) throw changedFault()
  }

  /** Waits until the target has what `until` asks for. Throws `DIGEST` where it is not what was sent. */
  async #agree(snapshot: Snapshot): Promise<void> {
    const { until } = this.#options
    const answers = await this.#answers
    const agreed = answers.whenSealed(snapshot).then(() => (until === 'running' ? answers.ready : undefined))
    await this.#inTime(agreed, `the target did not ${until === 'sealed' ? 'seal the snapshot' : 'restore the tasks'}`)
  }

  /** Lets CRIU kill the tasks. From here on what happens to them is the verdict. */
  async #letGo(snapshot: Snapshot): Promise<HandedOver> {
    const pending = this.#pending as PendingVerdict
    markLetGo(pending)
    this.#step('agreed')
    this.#gate.open()
    const verdict = await this.#verdict.promise
    const fate = await this.#inTime(this.#tellVerdict(), 'no answer').catch(() => undefined)
    if (fate !== undefined) forgetVerdict(pending)
    return { snapshot, spared: this.#dedup?.spared, verdict, fate, pending }
  }

  /** Makes the dump fail, so that the tasks run on, and tells the target. */
  async #takeBack(error: unknown): Promise<HandoverFailed> {
    this.#step('failed')
    this.#gate.shut()
    const lastWord = Promise.race([
      this.#refusal.catch((reason: unknown) => reason),
      setTimeout(this.#stuck ? 0 : ANSWER_MS, undefined, { ref: false }),
    ])
    const isLink = error instanceof Fault && error.code === 'LINK'
    const reason = isLink ? refusalOr(error, await lastWord) : error
    this.#options.onFailed?.(reason as Error)
    // Closing the link with unread acks would reset it before the target has read that the dump failed.
    await lastWord
    const pending = this.#pending
    if (pending === undefined) return { reason, pending }
    const late = setTimeout(ANSWER_MS, undefined, { ref: false })
    const fate = await Promise.race([this.#tellVerdict(), late]).catch(() => undefined)
    if (fate === undefined) return { reason, pending }
    forgetVerdict(pending)
    return { reason, pending: undefined }
  }

  /** Waits for the verdict, tells it, and returns what became of the target's tasks. */
  async #tellVerdict(): Promise<Fate> {
    const [answers, verdict] = await Promise.all([this.#answers, this.#verdict.promise])
    await this.#link.writer.send({ type: 'verdict', id: this.#options.id, token: this.#token, verdict })
    return answers.fate
  }

  #close(): void {
    this.#release()
    this.#stop.abort(new Fault('ABORTED', 'over'))
    this.#criuTimeout.close()
    this.#link.destroy()
    this.#tree?.close()
    this.#gate.remove()
    this.#criu.remove()
  }
}

/** `CRIU`: the tasks of this criu cannot be watched. */
export function unseenTasksFault(): Fault {
  return new Fault('CRIU', 'cannot see the tasks that this criu dumps, and so not whether they die', {
    hint: 'run this command in the pid namespace of that criu',
  })
}

/**
 * Calls `first` when CRIU opens its first image: by then the tree is frozen, and until CRIU has gone on it stays so.
 */
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

function changedFault(): Fault {
  return new Fault('CRIU', 'the tasks did not stay frozen while their pages were passed on', {
    hint: 'dump again; without --no-checksum pages are copied at once',
  })
}

/** The target's refusal, if it has sent one before it closed the link: it says more than our broken write. */
function refusalOr(error: unknown, word: unknown): unknown {
  const refused = word instanceof Fault && (word.code !== 'LINK' || word.hint !== undefined)
  return refused ? word : error
}
