/**
 * criu --remote at both ends of its own wire: dumps by img-proxy.sock, `--wire criu-remote`, an image-cache of that
 * time or ours.
 */
import { spawn } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { DUMP_SOCKET, RESTORE_SOCKET } from '../../lib/criu-remote/local-wire.ts'
import { encodeIds } from '../../lib/criu-remote/messages.ts'
import { within } from '../expect.ts'
import { chains } from '../support/chains.ts'
import { type Daemons, daemons, startCache, startProxy } from '../support/daemons.ts'
import { type Form, imagesOf } from '../support/fake-remote-criu.ts'
import { originalCache, type Received } from '../support/original.ts'
import { imagesIn } from '../support/rounds.ts'
import { eventually, type Ran, root, run, temporary } from '../support/run.ts'

const test = suite('scripts/remote-across')

const remote = ['--wire', 'criu-remote']
const [{ directories = [] } = {}] = chains()
const places = temporary()
const ids = directories.map((_directory, at) => join(places.path, `r${at + 1}`))
for (const id of ids) mkdirSync(id)
const [, , before = '', last = ''] = ids

function criu(args: string[]): Promise<Ran> {
  return run(process.execPath, ['--import', 'tsx', join(root, 'test/support/fake-remote-criu.ts'), ...args], {
    cwd: root,
  })
}

interface Dumping {
  proxy: Daemons['proxy']
  /** Dumps what was recorded: the last one is a dump, the others are pre-dumps. */
  part(at: number, more?: string[]): Promise<Ran>
}

async function dumping(source: string, proxy: Daemons['proxy'], form: Form, body: (dumping: Dumping) => Promise<void>) {
  const task = spawn('sleep', ['1000'], { stdio: 'ignore' })
  try {
    await body({
      proxy,
      async part(at, more = []) {
        const action = at === ids.length - 1 ? 'dump' : 'pre-dump'
        const line = [action, '-t', String(task.pid), '-D', ids[at] as string, '--remote', '--form', form]
        const ends = proxy.stderr().length
        const ran = await criu([
          ...line,
          '--images',
          directories[at] as string,
          '--socket',
          join(source, DUMP_SOCKET),
          ...more,
        ])
        if (ran.code === 0 && action === 'pre-dump') {
          await within(proxy.says(new RegExp(`^[\\s\\S]{${ends},}(round ${at + 1}: \\d+ pages|failed)`)), 'the round')
        }
        return ran
      },
    })
  } finally {
    task.kill('SIGKILL')
  }
}

/** To an image-cache of that time. */
async function original(
  forgets: boolean,
  form: Form,
  body: (dumping: Dumping) => Promise<void>,
  options: string[] = [],
): Promise<Received> {
  const { path, remove } = temporary()
  const cache = await originalCache(forgets)
  const proxy = await startProxy(path, cache.port, [...remote, ...options])
  try {
    await dumping(path, proxy, form, body)
    return await within(cache.received, 'the end of the stream')
  } finally {
    cache.close()
    await proxy.stop()
    remove()
  }
}

const names = (received: Received): string[] => [...received.images.keys()]

for (const [age, forgets, form] of [
  ['from May 2018 on', true, 'pipes'],
  ['before', false, 'socket'],
] as const) {
  test(`pre-dumps and a dump to an image-cache ${age}: one connection, every byte, the whole list once`, async () => {
    const came = await original(forgets, form, async ({ proxy, part }) => {
      for (const at of ids.keys()) {
        const ran = await part(at)
        assert.is(ran.code, 0, ran.stderr)
        const read = JSON.parse(ran.stdout.toString()) as Record<string, string | null>
        assert.equal(JSON.parse(Buffer.from(read.parent ?? '', 'hex').toString()), ids.slice(0, at + 1))
      }
      await within(proxy.says(/snapshot \S+\/r4 sent: \d+ images/))
    })
    assert.is(came.flaw, undefined)
    const list = encodeIds(ids)
    assert.ok(came.images.get(' parent')?.equals(list))
    assert.ok(came.images.get('null parent')?.equals(list))
    const dumped = ids.flatMap((id, at) =>
      imagesOf(directories[at] as string, at < ids.length - 1)
        .filter(([, bytes]) => bytes.length > 0)
        .map(([name, bytes]): [string, Buffer] => [`${id} ${name}`, bytes]),
    )
    for (const [key, bytes] of dumped) assert.ok(came.images.get(key)?.equals(bytes), key)
    assert.is(came.images.size, dumped.length + 2)
    const order = names(came).map((key) => key.split(' ')[0])
    assert.equal(order.slice(0, order.indexOf('')), order.slice(0, order.indexOf('')).sort())
    assert.ok(order.lastIndexOf(before) < order.indexOf('') && order.indexOf('null') < order.indexOf(last))
    assert.is(names(came).at(-1), `${last} inventory.img`)
  })
}

test('the same to our cache: flattened, for a restore by --remote and one by --stream', async () => {
  const both = await daemons({ proxy: remote, cache: remote })
  const flat = join(both.folder, 'flat')
  try {
    const flattened = await run('flatten', ['-D', directories.at(-1) as string, '--to-dir', flat])
    assert.is(flattened.code, 0, flattened.stderr)
    const wanted = Object.entries(imagesIn(flat)).filter(([, bytes]) => bytes.length > 0)
    await dumping(both.source, both.proxy, 'pipes', async ({ part }) => {
      for (const at of ids.keys()) assert.is((await part(at)).code, 0)
      await within(both.cache.says(/round 3 of snapshot[\s\S]*snapshot \S+ sealed/), 'the seal')
    })
    const into = join(both.folder, 'into')
    mkdirSync(into)
    const restored = await criu([
      ...['restore', '-D', last, '--remote', '--into', into],
      ...['--socket', join(both.target, RESTORE_SOCKET)],
      ...wanted.flatMap(([name]) => ['--read', name]),
    ])
    assert.is(restored.code, 0, restored.stderr)
    const stream = both.restore()
    for (const [name, bytes] of wanted) {
      assert.ok(readFileSync(join(into, name)).equals(bytes), `${name} by --remote`)
      assert.ok((await within(stream.image(name), name))?.equals(bytes), `${name} by --stream`)
    }
    stream.close()
  } finally {
    await both.stop()
  }
})

test('a single dump by img-proxy.sock: its list comes first', async () => {
  const came = await original(true, 'pipes', async ({ proxy, part }) => {
    const ran = await part(ids.length - 1)
    assert.is(ran.code, 0, `${ran.stderr}${proxy.stderr()}`)
    await within(proxy.says(/snapshot \S+\/r4 sent/))
  })
  assert.is(came.flaw, undefined)
  assert.equal(names(came).slice(0, 2), [' parent', 'null parent'])
  assert.is(names(came).at(-1), `${last} inventory.img`)
})

test('a chain that is given up ends its connection without a list: nothing of it can be restored', async () => {
  const came = await original(true, 'pipes', async ({ proxy, part }) => {
    assert.is((await part(0)).code, 0)
    await part(1, ['--die'])
    await within(proxy.says(/the pre-dump of \S+\/r2"? failed: criu ended before its images were complete/))
  })
  assert.is(came.flaw, undefined)
  assert.not.ok(names(came).some((key) => key.endsWith(' parent')))
})

test('a client without pre-dumps, that dies in the middle of a dump, leaves no inventory.img', async () => {
  const came = await original(true, 'pipes', async ({ proxy, part }) => {
    await part(ids.length - 1, ['--die'])
    await within(proxy.says(/failed: criu ended before its images were complete/))
  })
  assert.is(came.flaw, undefined)
  assert.not.ok(names(came).some((key) => key.endsWith('inventory.img')))
})

const descriptors = (proxy: Daemons['proxy']): number => readdirSync(`/proc/${proxy.child.pid}/fd`).length

for (const [how, unread] of [
  ['between two rounds', false],
  ['with bytes of the first round unread', true],
] as const) {
  test(`an image-cache that is gone ${how} ends the chain; no descriptor is left of it`, async () => {
    const { path, remove } = temporary()
    const target = join(path, 'target')
    const first = await startCache(target, remote)
    // A cache that is stopped takes no connection, and so nobody can see whose it is.
    const unasked = unread ? ['--insecure'] : []
    const proxy = await startProxy(path, first.port, [...remote, '--timeout', '1', ...unasked])
    const fds = descriptors(proxy)
    let second: Awaited<ReturnType<typeof startCache>> | undefined
    try {
      await dumping(path, proxy, 'pipes', async ({ part }) => {
        if (unread) first.cache.child.kill('SIGSTOP')
        await part(0)
        await first.cache.stop(unread ? 'SIGKILL' : 'SIGTERM')
        await part(1)
        await within(proxy.says(/the pre-dump of .*r2" failed: the image-cache closed the connection/))
        await part(0)
        await within(proxy.says(/the pre-dump of .*r1" failed: cannot connect/))
        second = await startCache(target, remote, first.port)
        assert.is((await part(ids.length - 1)).code, 0)
        await within(proxy.says(/r4 sent: \d+ images/))
      })
      await eventually(() => (descriptors(proxy) <= fds ? true : undefined), 'the end of all descriptors', 5000)
    } finally {
      await Promise.all([proxy.stop(), second?.cache.stop()])
      remove()
    }
  })
}

test('a cache that speaks our wire is no such cache', async () => {
  const both = await daemons({ proxy: remote })
  try {
    await dumping(both.source, both.proxy, 'pipes', async ({ part }) => {
      await part(0)
      await within(both.proxy.says(/r1" failed: the other end speaks|round 1:/))
      await part(1)
      await within(both.proxy.says(/failed: the other end speaks, as no image-cache of criu --remote does/))
    })
  } finally {
    await both.stop()
  }
})

test('SIGTERM while a chain waits for its next round: the connection ends, and no socket is left', async () => {
  const came = await original(true, 'pipes', async ({ proxy, part }) => {
    await part(0)
    const source = proxy.child.spawnargs.at(proxy.child.spawnargs.indexOf('-D') + 1) as string
    assert.is((await within(proxy.stop())).code, 143)
    assert.equal(readdirSync(source), [])
  })
  assert.is(came.flaw, undefined)
  assert.not.ok(names(came).some((key) => key.endsWith(' parent')))
})

test.after(() => places.remove())
test.run()
