/** Sessions that outlive their links: cut anywhere, any number of times, and asked to resume by other peers. */
import { writeSync } from 'node:fs'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Fault } from '../../lib/fault.ts'
import type { Fate } from '../../lib/format/enums.ts'
import { encodeFrame, NO_TOKEN, TOKEN_BYTES } from '../../lib/format/frame.ts'
import type { SnapshotId } from '../../lib/format/names.ts'
import { encodePreamble } from '../../lib/format/preamble.ts'
import { type Fd, makePipe } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { frameReader, frameWriter, unexpected } from '../../lib/stream/frames.ts'
import type { ImageSink } from '../../lib/stream/image.ts'
import type { Link } from '../../lib/stream/link.ts'
import { RateLimit } from '../../lib/stream/rate-limit.ts'
import { receiveSnapshot } from '../../lib/stream/receive.ts'
import { SENDER_WINDOW } from '../../lib/stream/replay-buffer.ts'
import { TargetLink, unknownSnapshot } from '../../lib/stream/resuming-receiver.ts'
import { resumingSender } from '../../lib/stream/resuming-sender.ts'
import { type SendOptions, sendSnapshot } from '../../lib/stream/send.ts'
import { RECEIVER_WINDOW, ResumableSession } from '../../lib/stream/session.ts'
import { rejectsFault, throwsFault } from '../expect.ts'
import { openPipes } from '../kernel/fds.ts'
import { anyFrame } from '../support/any-frame.ts'
import { type Cable, cable } from './cables.ts'
import { bytesOf, contents, type Given, id, image, pool, sourceOf } from './snapshots.ts'

const test = suite('stream/session')

/** What the receiving end has at the end. */
interface Got {
  sink: MemorySnapshot
  /** Bytes that were written into images; more than the images have if any was written twice. */
  written: number
  verdict: string | undefined
  failure: Fault | undefined
}

/** The receiving end: it does what a cache does with the links that come. */
function receiver(timeoutMs = 20_000) {
  const links = new Map<SnapshotId, TargetLink>()
  const sink = new MemorySnapshot(pool)
  const got: Got = { sink, written: 0, verdict: undefined, failure: undefined }
  const counting: ImageSink = {
    async open(name) {
      const writer = await sink.open(name)
      return {
        room: (wanted) => writer.room(wanted),
        wrote(bytes) {
          got.written += bytes
          return writer.wrote(bytes)
        },
        end: (entry) => writer.end(entry),
      }
    },
  }
  let taken = false
  async function take(
    target: TargetLink,
    reader: ReturnType<typeof frameReader>,
    writer: ReturnType<typeof frameWriter>,
  ) {
    if (taken) throw unknownSnapshot()
    const { digest } = await receiveSnapshot(reader, counting, {
      onAck: (channel, offset) => writer.send({ type: 'ack', channel, offset }),
      onHandOver(_until, token) {
        if (token === undefined) return
        taken = true
        target.outlive(token, timeoutMs)
        links.set(id, target)
      },
    })
    await writer.send({ type: 'sealed', digest })
    const verdict = await reader.expect(anyFrame)
    if (verdict.type !== 'verdict') throw unexpected(verdict)
    got.verdict = verdict.verdict
    await writer.send({ type: 'fate', fate: 'stored' })
    await reader.next(anyFrame).catch(() => {})
  }
  async function answer(link: Link): Promise<void> {
    const target = new TargetLink(link)
    const reader = frameReader(target.link.inlet, { onGot: (bytes) => target.onGot(bytes) })
    const writer = frameWriter(target.link.outlet)
    try {
      await writer.send({ type: 'hello' })
      const first = await reader.expect(anyFrame)
      if (first.type === 'snapshot') await take(target, reader, writer)
      else if (first.type === 'resume') {
        const known = links.get(first.id)
        if (known === undefined) throw unknownSnapshot()
        known.resume(first, target)
      } else throw unexpected(first)
    } catch (reason) {
      if (links.get(id) === target) got.failure = reason as Fault
      const code = (reason as Fault).code === 'MISSING' ? 'MISSING' : 'REFUSED'
      await writer.send({ type: 'refused', code, reason: (reason as Fault).message }).catch(() => {})
    }
  }
  return { got, links, answer, close: () => links.get(id)?.link.destroy() }
}

interface Sent {
  session: ResumableSession
  fate: Promise<Fate>
}

/** The sending end: it sends a snapshot and then a verdict. */
function send(
  images: readonly Given[],
  connect: (signal: AbortSignal) => Promise<Link>,
  { timeoutMs = 20_000, ...sending }: SendOptions & { timeoutMs?: number } = {},
): Sent {
  const session = resumingSender({ id, token: Buffer.alloc(16, 5), until: 'sealed', connect, timeoutMs })
  const { link } = session
  const reader = frameReader(link.inlet, { onGot: (bytes) => session.acknowledged(bytes), started: true })
  const writer = frameWriter(link.outlet, true)
  const options = { until: 'sealed', greeted: true, signal: session.over, ...sending } as const
  const sent = sendSnapshot(writer, id, sourceOf(images), options)
  sent.catch(() => {})
  const talk = async (): Promise<Fate> => {
    for (;;) {
      const frame = await reader.expect(anyFrame)
      if (frame.type === 'fate') return frame.fate
      if (frame.type === 'refused') throw new Error(`refused: ${frame.reason}`)
      if (frame.type === 'sealed') {
        assert.is(frame.digest, (await sent).digest)
        await writer.send({ type: 'verdict', verdict: 'go', token: NO_TOKEN, id })
      }
    }
  }
  const fate = talk().finally(() => link.destroy())
  fate.catch(() => {})
  return { session, fate }
}

/**
 * Sends a snapshot over `cables` one after the other, and then over one that holds. Throws unless it arrives
 * unchanged.
 */
async function crosses(images: readonly Given[], cables: Cable[], sending: SendOptions = {}): Promise<Cable[]> {
  const { got, answer, close } = receiver()
  const used: Cable[] = []
  const connect = async (): Promise<Link> => {
    const next = cables[used.length] ?? cable({ splices: sending.frozen ?? false })
    used.push(next)
    void answer(next.far)
    return next.near
  }
  const { fate } = send(images, connect, sending)
  try {
    assert.is(await fate, 'stored')
    assert.is(got.verdict, 'go')
    const arrived = contents(got.sink)
    for (const { name, bytes } of images) assert.ok(arrived.get(name)?.equals(bytes), name)
    assert.is(arrived.size, images.length)
    assert.is(
      got.written,
      images.reduce((sum, { bytes }) => sum + bytes.length, 0),
      'each byte is written into an image once',
    )
    return used
  } finally {
    close()
    got.sink.drop()
  }
}

const small = [image('pages-1.img', 40), image('inventory.img', 10)]
const heavy = [image('pages-1.img', 2_500_000, 'pipe', 300_000), image('core-1.img', 700), image('inventory.img', 10)]
const large = [image('pages-1.img', 2_500_000, 'pipe'), image('core-1.img', 700), image('inventory.img', 10)]

/** Runs all, `width` at a time. */
async function together<Item>(items: readonly Item[], width: number, run: (item: Item) => Promise<void>) {
  const left = [...items]
  const worker = async (): Promise<void> => {
    for (let item = left.shift(); item !== undefined; item = left.shift()) await run(item)
  }
  await Promise.all(Array.from({ length: width }, worker))
}

test('a small snapshot arrives, cut at every byte of both directions', async () => {
  const [whole] = (await crosses(small, [])) as [Cable]
  const [ups, downs] = [whole.up, whole.down]
  assert.ok(ups > 250 && downs > 100, `${ups} and ${downs} bytes`)
  const cuts = [
    ...Array.from({ length: ups }, (_, up) => ({ up })),
    ...Array.from({ length: downs }, (_, down) => ({ down })),
  ]
  await together(cuts, 50, async (cut) => {
    const used = await crosses(small, [cable(cut)])
    assert.ok(used.length >= 2, JSON.stringify(cut))
  })
})

test('a larger snapshot arrives, cut at 200 random places', async () => {
  const places = Array.from({ length: 200 }, (_, n) => Math.floor(((n + Math.random()) / 200) * 2_500_000))
  await together(places, 4, async (up) => {
    const used = await crosses(large, [cable({ up, room: 2 ** 16 + (up % 2 ** 20) })])
    assert.ok(used.length >= 2, `cut at ${up}`)
  })
})

test('pages that are passed on by reference arrive, cut at 100 random places', async () => {
  const open = openPipes()
  const places = Array.from({ length: 100 }, (_, n) => Math.floor(((n + Math.random()) / 100) * 2_500_000))
  const sending = { unchecked: true, frozen: true }
  let spliced = 0
  await together(places, 4, async (up) => {
    const room = 2 ** 16 + (up % 2 ** 20)
    const cuts = [up, 1_000_000].map((at) => cable({ up: at, splices: true, room }))
    const used = await crosses(heavy, cuts, sending)
    assert.ok(used.length >= 2, `cut at ${up}`)
    for (const one of used) spliced += one.spliced
  })
  const more = [image('pages-1.img', 40_000_000, 'pipe', 1_000_000), image('inventory.img', 10)]
  await crosses(more, [cable({ splices: true })], sending)
  assert.ok(spliced > 100_000_000, `${spliced} bytes`)
  assert.is(openPipes(), open, 'every pipe is closed')
})

test('a compressed snapshot with a rate limit arrives, cut at 24 random places', async () => {
  const bytes = Buffer.concat([
    Buffer.alloc(1_500_000, 'line after line\n'),
    bytesOf('x', 300_000),
    Buffer.alloc(700_000),
  ])
  const images: Given[] = [{ name: 'pages-1.img', bytes, kind: 'pipe', step: 65_536 }, ...large.slice(1)]
  for (const compress of ['zstd', 'lz4'] as const) {
    const [whole] = (await crosses(images, [], { compress })) as [Cable]
    assert.ok(whole.up > 300_000 && whole.up < 500_000, `${whole.up} bytes`)
    const places = fc.sample(fc.nat(whole.up), { seed: 7, numRuns: 12 })
    await together(places, 16, async (up) => {
      await crosses(images, [cable({ up })], { compress, limit: new RateLimit(100_000_000) })
    })
  }
})

test('one snapshot arrives, cut again and again', async () => {
  const cuts = [0, 30, 100, 200_000, 5, 64, 700_000, 1, 400_000, 100, 150, 600_000]
  const used = await crosses(
    large,
    cuts.map((up, n) => (n % 3 === 2 ? cable({ down: up % 120 }) : cable({ up }))),
  )
  assert.ok(used.length > cuts.length, `${used.length} links`)
})

test('a got frame that was under way when the link broke comes late, and does no harm', async () => {
  const many = [image('pages-1.img', 6_000_000, 'pipe'), image('inventory.img', 10)]
  const downs = Array.from({ length: 24 }, (_, n) => 53 + 9 * n)
  await together(downs, 4, async (down) => {
    const used = await crosses(many, [cable({ down, room: 2 ** 22 }), cable({ down: 90, room: 2 ** 22 })])
    assert.ok(used.length >= 2, String(down))
  })
})

test('both ends leave a link that swallows everything for another one', async () => {
  const mute = cable({ room: 2 ** 16 })
  setTimeout(() => mute.mute(), 5)
  const { got, answer, close } = receiver(4000)
  let links = 0
  const { fate } = send(
    [image('pages-1.img', 30_000_000, 'pipe'), image('inventory.img', 3)],
    async () => {
      const next = links++ === 0 ? mute : cable()
      void answer(next.far)
      return next.near
    },
    { timeoutMs: 4000 },
  )
  assert.is(await fate, 'stored')
  assert.is(got.written, 30_000_003)
  assert.is(links, 2)
  close()
  got.sink.drop()
})

test('links that greet and then carry nothing fail the sender within the time-out', async () => {
  const { got, answer, close } = receiver(20_000)
  let links = 0
  const { fate } = send(
    [image('pages-1.img', 30_000_000, 'pipe'), image('inventory.img', 3)],
    async () => {
      const next = cable(links++ === 0 ? { up: 1_000_000 } : {})
      // Behind the greetings: small packets pass, large ones do not.
      if (links > 1) {
        const { send } = next.near.outlet
        let greeted = false
        next.near.outlet.send = async (bytes) => {
          if (greeted) next.mute()
          greeted = true
          await send(bytes)
        }
      }
      void answer(next.far)
      return next.near
    },
    { timeoutMs: 5000 },
  )
  await rejectsFault('LINK', fate)
  assert.ok(links >= 3, `${links} links`)
  close()
  got.sink.drop()
})

test('a link that stays dead fails the sender and the receiver within the time-out', async () => {
  for (const dead of ['cut', 'mute'] as const) {
    const { got, answer, links } = receiver(1000)
    const first = cable()
    const { fate, session } = send(
      [image('pages-1.img', 30_000_000, 'pipe'), image('inventory.img', 3)],
      (signal) => {
        const next = links.size === 0 ? first : cable()
        if (next !== first) next.mute()
        void answer(next.far)
        signal.addEventListener('abort', () => next.cut())
        return Promise.resolve(next.near)
      },
      { timeoutMs: 1000 },
    )
    setTimeout(() => first[dead](), 20)
    await rejectsFault('LINK', fate)
    assert.ok(session.over.aborted)
    for (let at = 0; at < 100 && got.failure === undefined; at++) await new Promise((r) => setTimeout(r, 30))
    assert.is(got.failure?.code, 'TIMEOUT')
    got.sink.drop()
  }
})

/** Sends frames on a new link, as any peer may, and returns the answer. */
async function ask(answer: (link: Link) => Promise<void>, ...frames: Uint8Array[]) {
  const { near, far } = cable()
  void answer(far)
  await near.outlet.send(Buffer.concat([encodePreamble(), ...frames]))
  const reader = frameReader(near.inlet)
  assert.is((await reader.expect(anyFrame)).type, 'hello')
  return reader.expect(anyFrame)
}

/** A conversation in the middle of its images. */
async function halfWay() {
  const there = receiver(3000)
  const tokens: Buffer[] = []
  let first: Cable | undefined
  const { fate, session } = send(
    [image('pages-1.img', 3_000_000, 'pipe'), image('inventory.img', 3)],
    async () => {
      const next = cable()
      first ??= next
      const watched: Link = {
        ...next.near,
        outlet: {
          ...next.near.outlet,
          async send(bytes) {
            const at = Buffer.from(bytes).indexOf(Buffer.from([7, 0, 0, 0, 0, 0, 0, 0]))
            if (tokens.length === 0 && at > 0) tokens.push(Buffer.from(bytes.subarray(at + 25, at + 25 + TOKEN_BYTES)))
            await next.near.outlet.send(bytes)
          },
        },
      }
      void there.answer(next.far)
      return watched
    },
    { timeoutMs: 3000 },
  )
  while (there.got.written < 100_000) await new Promise((resolve) => setImmediate(resolve))
  const [token] = tokens
  assert.ok(token)
  return { ...there, fate, session, token, first: first as unknown as Cable }
}

test('a wrong token, or another id, is refused alike and changes nothing', async () => {
  const { answer, token, fate, got, first } = await halfWay()
  const wrong = Buffer.from(token)
  wrong.writeUInt8(wrong.readUInt8(15) ^ 1, 15)
  const answers = [
    await ask(answer, encodeFrame({ type: 'resume', offset: 0, token: wrong, id })),
    await ask(answer, encodeFrame({ type: 'resume', offset: 0, token: Buffer.alloc(16), id })),
    await ask(answer, encodeFrame({ type: 'resume', offset: 0, token, id: 'other' as SnapshotId })),
  ]
  for (const each of answers) assert.equal(each, answers[0])
  assert.ok(answers[0]?.type === 'refused' && answers[0].code === 'MISSING')
  first.cut()
  assert.is(await fate, 'stored')
  assert.is(got.written, 3_000_003)
  got.sink.drop()
})

test('the right token with an impossible position ends the conversation', async () => {
  const { answer, token, fate, got } = await halfWay()
  const refusal = await ask(answer, encodeFrame({ type: 'resume', offset: 1_000_000, token, id }))
  assert.ok(refusal.type === 'refused' && refusal.code === 'REFUSED')
  assert.match(refusal.reason, /says that it has 1000000 bytes/)
  assert.instance(await fate.catch((reason: Error) => reason), Error)
  assert.is(got.failure?.code, 'FORMAT')
  got.sink.drop()
})

test('a receiver that names an impossible position fails the sender', async () => {
  const lies = [
    (sent: number) => sent + 1,
    // It acknowledged more before.
    () => 99,
  ]
  for (const lie of lies) {
    const first = cable()
    let links = 0
    let taken = 0
    const { fate } = send(
      [image('pages-1.img', 300_000, 'pipe'), image('inventory.img', 3)],
      async () => {
        const next = links++ === 0 ? first : cable()
        void (async () => {
          const writer = frameWriter(next.far.outlet)
          await writer.send({ type: 'hello' })
          const reader = frameReader(next.far.inlet)
          const frame = await reader.expect(anyFrame)
          if (frame.type === 'resume') return writer.send({ type: 'got', offset: lie(400_000) })
          await reader.expect(anyFrame)
          for (const scratch = Buffer.alloc(100); taken < 250_000; taken += 100) await next.far.inlet.fill(scratch)
          await writer.send({ type: 'got', offset: 100 })
          await new Promise((resolve) => setTimeout(resolve, 50))
          first.cut()
        })()
        return next.near
      },
      { timeoutMs: 3000 },
    )
    await rejectsFault('FORMAT', fate)
    assert.is(links, 2)
  }
})

test('a got frame names a position between what was acknowledged and what was sent, or is FORMAT', async () => {
  const session = new ResumableSession({ peer: 'x', role: 'receiver', timeoutMs: 60_000 })
  const { near } = cable()
  session.attach(near, 0)
  await session.link.outlet.send(Buffer.alloc(100))
  await new Promise((resolve) => setTimeout(resolve, 10))
  session.acknowledged(60)
  session.acknowledged(60)
  throwsFault('FORMAT', () => session.acknowledged(59))
  throwsFault('FORMAT', () => session.acknowledged(101))
  session.attach(cable().near, 60, Buffer.alloc(1))
  throwsFault('FORMAT', () => session.acknowledged(100), 'not sent on this link yet')
  await new Promise((resolve) => setTimeout(resolve, 10))
  session.attach(cable().near, 100)
  session.acknowledged(80)
  throwsFault(
    'FORMAT',
    () => session.acknowledged(79),
    'older than the last, though it may have been under way when the link broke',
  )
  session.acknowledged(100)
  throwsFault('FORMAT', () => session.attach(cable().near, 99))
  assert.ok(session.over.aborted, 'an impossible position on a new link ends it')
  await rejectsFault('FORMAT', session.link.outlet.send(Buffer.alloc(1)))
})

test('bytes of an old link that come after another took its place do not count', async () => {
  const session = new ResumableSession({ peer: 'x', role: 'receiver', timeoutMs: 60_000 })
  const [old, next] = [cable(), cable()]
  let deliver = (): void => {}
  // The kernel has delivered them already, but the read has not returned yet.
  const late = (into: Uint8Array): Promise<number> =>
    new Promise((resolve) => {
      into.fill(1, 0, 5)
      deliver = () => resolve(5)
    })
  session.attach({ ...old.near, inlet: { ...old.near.inlet, read: late } }, 0)
  const into = Buffer.alloc(10)
  const filled = session.link.inlet.fill(into)
  session.attach(next.near, 0)
  deliver()
  await new Promise((resolve) => setTimeout(resolve, 10))
  assert.is(session.received, 0)
  await next.far.outlet.send(Buffer.alloc(10, 2))
  assert.ok(await filled)
  assert.equal(into, Buffer.alloc(10, 2))
  assert.is(session.received, 10)
  session.link.destroy()
})

test('a sender whose window is full waits, and goes on when there is room', async () => {
  const link = cable({ room: 1 })
  const session = resumingSender({
    id,
    token: Buffer.alloc(16, 5),
    until: 'sealed',
    connect: async () => link.near,
    timeoutMs: 60_000,
  })
  const chunk = Buffer.alloc(2 ** 20, 7)
  let sent = 0
  const sending = (async () => {
    for (; sent < 20; sent++) await session.link.outlet.send(chunk)
  })()
  await new Promise((resolve) => setTimeout(resolve, 100))
  assert.is(sent, SENDER_WINDOW / 2 ** 20)
  const writer = frameWriter(link.far.outlet)
  await writer.send({ type: 'hello' })
  const reader = frameReader(link.far.inlet)
  assert.is((await reader.expect(anyFrame)).type, 'snapshot')
  assert.is((await reader.expect(anyFrame)).type, 'handOver')
  const onGot = (bytes: number): void => session.acknowledged(bytes)
  const reading = frameReader(session.link.inlet, { onGot, started: true }).next(anyFrame)
  reading.catch(() => {})
  const scratch = Buffer.alloc(2 ** 20)
  for (let taken = 1; taken <= 8; taken++) {
    assert.ok(await link.far.inlet.fill(scratch))
    assert.ok(scratch.equals(chunk))
  }
  assert.is(sent, SENDER_WINDOW / 2 ** 20, 'what was only sent is kept')
  await writer.send({ type: 'got', offset: 3 * 2 ** 20 })
  await new Promise((resolve) => setTimeout(resolve, 100))
  assert.is(sent, SENDER_WINDOW / 2 ** 20 + 3)
  session.stop(new Error('enough'))
  const reason = await sending.catch((reason: Error) => reason)
  assert.match(String(reason), 'enough')
  session.link.destroy()
})

test('a receiver does not keep more than its window for a sender that never says what it has', async () => {
  const session = new ResumableSession({ peer: 'x', role: 'receiver', timeoutMs: 60_000 })
  await session.link.outlet.send(Buffer.alloc(RECEIVER_WINDOW))
  await rejectsFault('LIMIT', session.link.outlet.send(Buffer.alloc(1)))
  session.link.destroy()
})

test('a pipe that is read and closed while its pages wait for room is not touched any more', async () => {
  const session = new ResumableSession({ peer: 'x', role: 'sender', timeoutMs: 60_000 })
  session.attach(cable({ splices: true, room: 2 ** 24 }).near, 0)
  const { outlet } = session.link
  await outlet.send(Buffer.alloc(SENDER_WINDOW))
  const [out, into] = makePipe()
  writeSync(into, Buffer.alloc(2 ** 16, 1))
  let untouched: Fd | undefined = out
  const passed = outlet.passOn?.(
    () => untouched,
    2 ** 20,
    () => {
      throw new Error('it passes bytes on')
    },
  )
  await new Promise((resolve) => setTimeout(resolve, 10))
  untouched = undefined
  for (const end of [out, into]) closeFd(end)
  session.acknowledged(2 ** 20)
  assert.is(await passed, 0)
  session.link.destroy()
})

test.run()
