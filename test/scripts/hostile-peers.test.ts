/**
 * Peers that are slow on purpose, other users of this host, and floods of failures: the cache as a command, over
 * loopback.
 */
import { randomBytes } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { encodeFrame, type Frame } from '../../lib/format/frame.ts'
import { imageName, snapshotId } from '../../lib/format/names.ts'
import { encodePreamble } from '../../lib/format/preamble.ts'
import { within } from '../expect.ts'
import { startCache } from '../support/daemons.ts'
import { startHost } from '../support/host.ts'
import { eventually, type Running, run, start, temporary } from '../support/run.ts'
import { startSshd } from '../support/sshd.ts'
import { type UserRelay, userRelay } from '../support/user-relay.ts'
import { untilSettled, type Watched, watched } from '../support/watched.ts'
import {
  type Crowd,
  crowd,
  leave,
  leaveAtLast,
  outcome,
  snapshotBytes,
  take,
  type Where,
} from '../support/wire-peer.ts'

const test = suite('scripts/hostile-peers')

const MIB = 2 ** 20
const NOBODY = 65534
const isRoot = process.geteuid?.() === 0
const words = (...frames: Frame[]): Uint8Array[] => [Buffer.concat([encodePreamble(), ...frames.map(encodeFrame)])]
const snapshot = (id: string): Frame => ({ type: 'snapshot', id: snapshotId(id) })
const newest: Frame = { type: 'get', id: undefined, timeoutMs: 0 }
const small = { 'core-1.img': Buffer.from('secret'), 'inventory.img': Buffer.from('abc') }

interface Scene {
  cache: Running
  port: string
  folder: string
  look: Watched
}

/** A cache that lives on through `body` and never says anything unforeseen. */
async function scene(options: string[], body: (scene: Scene) => Promise<void>): Promise<void> {
  const { path: folder, remove } = temporary()
  const { cache, port } = await startCache(join(folder, 'cache'), ['--max-memory', '64M', ...options])
  try {
    await body({ cache, port, folder, look: watched(cache) })
    assert.is(cache.child.exitCode, null, 'the cache lives on')
  } finally {
    await cache.stop()
    remove()
  }
  assert.is(/.*(this is a bug|Warning).*/.exec(cache.stderr())?.[0], undefined)
}

type Taking = Awaited<ReturnType<typeof take>>
const had = (taken: Taking): string => (typeof taken === 'string' ? taken : `got ${taken.id}`)

interface Slow {
  what: string
  count: number
  /** One of them, which comes again when it is over. */
  come: (all: Crowd, k: number) => void
}

const again =
  (come: Slow['come'], all: Crowd, k: number, ms: number): (() => void) =>
  () =>
    void globalThis.setTimeout(() => come(all, k), ms)

const dripping = (k: number): Buffer =>
  Buffer.concat([
    encodePreamble(),
    ...snapshotBytes(`d-${k}`, { 'core-1.img': Buffer.alloc(1000), 'inventory.img': Buffer.alloc(3) }),
  ])

const slow: Record<string, Slow> = {
  silent: {
    what: 'who say nothing, and come again',
    count: 400,
    come: (all, k) => void all.join([], { reads: true, over: again(slow.silent?.come as Slow['come'], all, k, 50) }),
  },
  drip: {
    what: 'who say one byte after the other',
    count: 200,
    come(all, k) {
      const bytes = dripping(k)
      let said = 0
      const timer = setInterval(() => socket.write(bytes.subarray(said, ++said)), 1000)
      const over = again(slow.drip?.come as Slow['come'], all, k, 100)
      const socket = all.join([], { reads: true, over })
      socket.on('close', () => clearInterval(timer))
    },
  },
  half: {
    what: 'who begin a snapshot, and end',
    count: 200,
    come(all, k) {
      const begun = words(snapshot(`h-${k}`), { type: 'image', channel: 1, name: imageName('core-1.img') })
      all.join(begun, { reads: true, over: again(slow.half?.come as Slow['come'], all, k, 500) }).end()
    },
  },
  getloop: {
    what: 'who ask for 20 MiB again and again, and read nothing',
    count: 100,
    come(all, k) {
      const socket = all.join(words(newest), { over: again(slow.getloop?.come as Slow['come'], all, k, 10) })
      globalThis.setTimeout(() => socket.destroy(), 300)
    },
  },
  mute: {
    what: 'who begin a snapshot and say no more, as many as have places',
    count: 255,
    come: (all, k) => void all.join(words(snapshot(`m-${k}`))),
  },
  arriving: {
    what: 'one that begins a snapshot and says no more',
    count: 1,
    come: (all, k) => void all.join(words(snapshot(`a-${k}`))),
  },
}

/** Until it is had: whoever has no place at once tries again, as a proxy does. */
async function takeAtLast(where: Where, id: string | undefined): Promise<Taking> {
  let last: Taking = 'nothing'
  for (const end = performance.now() + 60_000; performance.now() < end && typeof last === 'string'; ) {
    last = await take(where, id, 1000).catch(({ message }: Error) => message)
    if (typeof last === 'string') await setTimeout(100)
  }
  return last
}

for (const [name, { what, count, come }] of Object.entries(slow)) {
  test(`${count} ${what}: an honest snapshot beside them is sealed and had, and is the newest`, () =>
    scene(['--timeout', '300'], async ({ port, look }) => {
      const images = { 'core-1.img': randomBytes(8 * MIB), 'inventory.img': Buffer.from('abc') }
      await leaveAtLast({ port }, 'older', { 'core-1.img': randomBytes(20 * MIB), 'inventory.img': Buffer.from('abc') })
      assert.is(had(await take({ port }, undefined)), 'got older')
      const usual = await untilSettled(look.status, ({ links, silent, peers }) => links + silent + peers === 0)
      const descriptors = look.descriptors()
      const all = crowd({ port })
      try {
        for (let k = 0; k < count; k++) come(all, k)
        await setTimeout(1500)
        const begun = performance.now()
        const tries = await leaveAtLast({ port }, 'honest', images)
        const sealed = performance.now()
        const taken = await takeAtLast({ port }, 'honest')
        const gotten = performance.now()
        assert.is(had(await takeAtLast({ port }, undefined)), 'got honest')
        const seconds = [sealed - begun, gotten - sealed, performance.now() - gotten].map((ms) =>
          (ms / 1000).toFixed(2),
        )
        console.log(
          `figures: ${name}: sealed in ${seconds[0]} s (${tries} tries), had in ${seconds[1]} s, ` +
            `newest in ${seconds[2]} s`,
        )
        assert.is.not(typeof taken, 'string', had(taken))
        if (typeof taken !== 'string') assert.ok(taken.images.get('core-1.img')?.equals(images['core-1.img']))
      } finally {
        all.disperse()
      }
      const { memory, ...rest } = await untilSettled(
        look.status,
        ({ links, silent, peers }) => links + silent + peers === 0,
      )
      assert.equal(rest, { snapshots: 2, chains: 0, links: 0, silent: 0, peers: 0, parked: 0 })
      assert.is(memory, usual.memory + 10 * MIB, 'what they began is gone')
      await untilSettled(look.descriptors, (now) => now === descriptors)
    }))
}

/** Of the snapshot `root`: whether the peer may leave one and take it. */
async function mayDo(where: Where, id: string): Promise<string[]> {
  return [outcome(await leave(where, id, small)), had(await take(where, 'root'))]
}

async function asUser(
  uid: number,
  port: string,
  host: string,
  body: (relay: UserRelay) => Promise<void>,
): Promise<void> {
  const relay = await userRelay(uid, port, host)
  try {
    await body(relay)
  } finally {
    await relay.stop()
  }
}

for (const host of ['127.0.0.1', '::1']) {
  test(`another user of this host, over ${host}: he leaves and takes no snapshot, and the log names him`, async () => {
    if (!isRoot) return void console.log('skipped: another user wants root')
    await scene(['--address', host], async ({ cache, port, folder }) => {
      assert.equal(await mayDo({ host, port }, 'root'), ['sealed', 'got root'])
      await asUser(NOBODY, port, host, async (relay) => {
        const refused = /^REFUSED: user 65534 of this host may not speak here without --allow-uid 65534/
        for (const said of await mayDo({ host, port: relay.port }, 'nobody')) assert.match(said, refused)
        await cache.says(/\d failed: user 65534 of this host may not speak here/)
        await cache.says(/hint: start this command with --allow-uid 65534/)
        const target = host.includes(':') ? `[${host}]:${relay.port}` : `${host}:${relay.port}`
        // The relay is his as well, and the cache's word on him is what counts here.
        const as = ['--allow-uid', '65534']
        const ran = await run('restore-from-socket', ['--from', target, ...as, '--to-dir', join(folder, 'out')])
        assert.is.not(ran.code, 0)
        assert.match(ran.stderr, /user 65534 of this host may not speak here without --allow-uid 65534/)
      })
      assert.is(had(await take({ host, port }, undefined)), 'got root', 'nothing newer is here')
      assert.equal(await mayDo({ host, port }, 'root-2'), ['sealed', 'got root'])
    })
  })

  for (const options of [['--allow-uid', '65534'], ['--allow-uid', '1', '--allow-uid', '65534'], ['--insecure']]) {
    test(`with ${options.join(' ')} he may, over ${host}`, async () => {
      if (!isRoot) return void console.log('skipped: another user wants root')
      await scene(['--address', host, ...options], async ({ port }) => {
        assert.equal(await mayDo({ host, port }, 'root'), ['sealed', 'got root'])
        await asUser(NOBODY, port, host, async (relay) => {
          assert.equal(await mayDo({ host, port: relay.port }, 'nobody'), ['sealed', 'got root'])
        })
      })
    })
  }
}

test('another user who was named lets no third one in', async () => {
  if (!isRoot) return void console.log('skipped: another user wants root')
  await scene(['--allow-uid', '65534'], ({ port }) =>
    asUser(1, port, '127.0.0.1', async (relay) => {
      assert.match(outcome(await leave({ port: relay.port }, 'daemon', small)), /user 1 of this host may not speak/)
    }),
  )
})

function keyFile(folder: string): string {
  const file = join(folder, 'key')
  writeFileSync(file, randomBytes(32), { mode: 0o600 })
  return file
}

test('with a key it is the key that counts, whoever connects', async () => {
  if (!isRoot) return void console.log('skipped: another user wants root')
  const { path, remove } = temporary()
  const key = keyFile(path)
  await scene(['--key-file', key], async ({ port }) => {
    const credentials = { kind: 'key', key } as const
    assert.equal(await mayDo({ port, credentials }, 'root'), ['sealed', 'got root'])
    await asUser(NOBODY, port, '127.0.0.1', async (relay) => {
      assert.equal(await mayDo({ port: relay.port, credentials }, 'nobody'), ['sealed', 'got root'])
      assert.is(outcome(await leave({ port: relay.port }, 'without', small)), 'nothing')
    })
  })
  remove()
})

test('ssh -L of another user reaches the cache where that user was named, and only there', async () => {
  const host = isRoot ? await startHost() : undefined
  const sshd = host === undefined ? 'another user wants root' : await startSshd(host)
  try {
    if (typeof sshd === 'string') return void console.log(`skipped: ssh -L: ${sshd}`)
    const daemon = Number(/^daemon:[^:]*:(\d+):/m.exec(readFileSync('/etc/passwd', 'utf8'))?.[1])
    for (const [options, said] of [
      [[], /^REFUSED: user 1 of this host may not speak here without --allow-uid 1 /],
      [['--allow-uid', String(daemon)], /^sealed$/],
    ] as const) {
      await scene([...options], async ({ port }) => {
        // Its own port is what the kernel chose for another socket a moment ago.
        const own = await userRelay(daemon, port).then(async (relay) => {
          await relay.stop()
          return relay.port
        })
        const forward = `127.0.0.1:${own}:127.0.0.1:${port}`
        const ssh = start('/usr/bin/ssh', ['-F', sshd.config, '-v', '-l', 'daemon', '-N', '-L', forward, 'host'])
        try {
          await ssh.says(/Local forwarding listening on 127\.0\.0\.1/)
          await ssh.says(/Entering interactive session|pledge: network/)
          assert.match(outcome(await leave({ port: own }, 'by-ssh', small)), said)
        } finally {
          await ssh.stop()
        }
      })
    }
  } finally {
    if (typeof sshd !== 'string') await sshd.stop()
    await host?.stop()
  }
})

const failedLines = ({ stderr }: Running): number => (stderr().match(/^.* failed: /gm) ?? []).length

interface Flood {
  what: string
  options: (folder: string) => string[]
  as: number
  words: Uint8Array[]
}

const floods: Flood[] = [
  { what: 'of a user who may not speak', options: () => [], as: NOBODY, words: words(newest) },
  {
    what: 'of somebody without the key',
    options: (folder) => ['--key-file', keyFile(folder)],
    as: NOBODY,
    words: words(newest),
  },
  {
    what: 'of somebody who speaks something else',
    options: () => ['--allow-uid', '65534'],
    as: NOBODY,
    words: [Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')],
  },
]

for (const { what, options, as, words: said } of floods) {
  test(`a flood ${what} writes a line a second, and an honest failure beside it is told`, async () => {
    if (!isRoot) return void console.log('skipped: another user wants root')
    const { path, remove } = temporary()
    const chosen = options(path)
    const key = chosen[0] === '--key-file' ? (chosen[1] as string) : undefined
    await scene(chosen, ({ cache, port }) =>
      asUser(as, port, '127.0.0.1', async (relay) => {
        const before = failedLines(cache)
        const begun = performance.now()
        const all = crowd({ port: relay.port })
        let came = 0
        const come = (): void => {
          came++
          all.join(said, { reads: true, over: come })
        }
        for (let k = 0; k < 20; k++) come()
        await setTimeout(1500)
        const where: Where = key === undefined ? { port } : { port, credentials: { kind: 'key', key } }
        const damaged = await take(where, 'not-here')
        assert.match(had(damaged), /^TIMEOUT/)
        await cache.says(/failed: .*not-here/)
        await setTimeout(1500)
        all.disperse()
        const seconds = (performance.now() - begun) / 1000
        const lines = failedLines(cache) - before - 1
        console.log(`figures: flood ${what}: ${came} connections and ${lines} lines in ${seconds.toFixed(1)} s`)
        assert.ok(came > 100, `${came} connections`)
        assert.ok(lines >= 2 && lines <= seconds + 2, `${lines} lines in ${seconds} s`)
        await cache.says(/\d+ more connections of user 65534 failed: the last one: /)
      }),
    )
    remove()
  })
}

test('clients that stall in the TLS handshake do not keep those out who have the key', async () => {
  const { path, remove } = temporary()
  const key = keyFile(path)
  await scene(['--key-file', key], async ({ cache, port, look }) => {
    const credentials = { kind: 'key', key } as const
    assert.equal(await mayDo({ port, credentials }, 'root'), ['sealed', 'got root'])
    const descriptors = await untilSettled(look.descriptors, () => true)
    const all = crowd({ port })
    const halfGreeting = Buffer.from('160301020001', 'hex')
    const come = (): void => void all.join([halfGreeting], { reads: true, over: come })
    for (let k = 0; k < 300; k++) come()
    await setTimeout(1000)
    const times: number[] = []
    for (let k = 0; k < 5; k++) {
      const begun = performance.now()
      assert.equal(await within(mayDo({ port, credentials }, `honest-${k}`)), ['sealed', 'got root'])
      times.push(performance.now() - begun)
    }
    all.disperse()
    console.log(`figures: beside 300 that stall in TLS: ${times.map((ms) => (ms / 1000).toFixed(2)).join(', ')} s`)
    await untilSettled(look.status, ({ links, silent }) => links + silent === 0)
    await untilSettled(look.descriptors, (now) => now <= descriptors)
    await eventually(() => cache.child.exitCode === null || undefined, 'life')
  })
  remove()
})

test.run()
