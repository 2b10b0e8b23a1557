/**
 * `--wire criu-remote`: our cache with an image-proxy of criu --remote, our proxy with such an image-cache, and both of
 * ours.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { RESTORE_SOCKET } from '../../lib/criu-remote/local-wire.ts'
import { encode, openMode } from '../../lib/criu-remote/messages.ts'
import { remoteImageEntry } from '../../lib/format/criu-messages.ts'
import { impatient, reasonOf, within } from '../expect.ts'
import { chains } from '../support/chains.ts'
import { type Daemons, daemons, startCache, startProxy } from '../support/daemons.ts'
import { fakeDump, fakeRestore } from '../support/fake-criu.ts'
import { fakeRemote } from '../support/fake-remote-criu.ts'
import { originalCache, originalProxy } from '../support/original.ts'
import { fixtures, run, temporary } from '../support/run.ts'
import { pattern } from '../support/talk.ts'

const test = suite('scripts/remote-wire')

const remote = ['--wire', 'criu-remote']

function imagesOf(directory: string): Map<string, Buffer> {
  const names = readdirSync(directory).filter((name) => name.endsWith('.img'))
  return new Map(names.sort().map((name) => [name, readFileSync(join(directory, name))]))
}

const real = imagesOf(join(fixtures, 'images'))
const snapshot = '/tmp/dump'

interface Hearing {
  port: string
  cache: Daemons['cache']
  /** Where a restore by --remote asks. */
  restores: string
  image(name: string): Promise<Buffer | undefined>
}

/** A cache of ours that hears an image-proxy. */
async function hearing(body: (hearing: Hearing) => Promise<void>, options: string[] = []): Promise<void> {
  const { path, remove } = temporary()
  const { cache: started, port } = await startCache(path, [...remote, ...options])
  const cache = impatient(started)
  try {
    await body({
      port,
      cache,
      restores: join(path, RESTORE_SOCKET),
      async image(name) {
        const criu = fakeRestore(join(path, 'streamer-serve.sock'))
        const bytes = await within(criu.image(name), name)
        criu.close()
        return bytes
      },
    })
  } finally {
    await cache.stop()
    remove()
  }
}

for (const [age, mode, place] of [
  ['of 2017, which adds to every image', openMode.append, 'null'],
  ['of 2019', openMode.write, ''],
] as const) {
  test(`an image-proxy ${age}: its images are sealed, and served`, () =>
    hearing(async ({ port, cache, image }) => {
      const proxy = await originalProxy(port, place)
      proxy.push(snapshot)
      for (const [name, bytes] of real) proxy.image(snapshot, name, bytes, mode)
      await proxy.end()
      await cache.says(/sealed: 13 images.*digest none: only sizes were compared/)
      for (const name of ['inventory.img', 'core-18177.img', 'pages-1.img']) {
        assert.ok((await image(name))?.equals(real.get(name) as Buffer), name)
      }
      assert.is(await image('memfd.img'), undefined)
      assert.is((await image('snapshot-ids'))?.toString('latin1'), `\x0b\0\0\0\n\x09${snapshot}`)
    }))
}

for (const { criu, directories } of chains()) {
  test(`a chain of CRIU ${criu}: three pre-dumps and a dump become what flatten makes of them`, () =>
    hearing(async ({ port, cache, image }) => {
      const { path, remove } = temporary()
      const flat = join(path, 'flat')
      const flattened = await run('flatten', ['-D', directories[3] as string, '--to-dir', flat])
      assert.is(flattened.code, 0, flattened.stderr)
      const proxy = await originalProxy(port)
      for (const directory of directories) {
        proxy.push(directory)
        for (const [name, bytes] of imagesOf(directory)) proxy.image(directory, name, bytes)
      }
      await proxy.end()
      await cache.says(/round 3 of snapshot.*[\s\S]*snapshot \S+ sealed/)
      for (const [name, bytes] of imagesOf(flat)) {
        if (/^pages-|^pagemap-/.test(name)) assert.is((await image(name))?.length, bytes.length, name)
        if (/^pages-/.test(name)) assert.ok((await image(name))?.equals(bytes), name)
      }
      remove()
    }))
}

test('TCP EOF inside a body is no complete image (3.3)', () =>
  hearing(async ({ port, cache }) => {
    const proxy = await originalProxy(port)
    proxy.push(snapshot)
    for (const [name, bytes] of real) if (name !== 'inventory.img') proxy.image(snapshot, name, bytes)
    const bytes = real.get('inventory.img') as Buffer
    proxy.raw(
      encode(remoteImageEntry, { name: 'inventory.img', snapshot_id: snapshot, open_mode: 1, size: bytes.length }),
    )
    proxy.raw(bytes.subarray(0, -1))
    await proxy.end()
    await cache.says(/failed: criu --remote: the stream ended in the middle of image inventory.img/)
    assert.not.match(cache.stderr(), /sealed/)
  }))

test('a stream without inventory.img is no dump, and neither is one that ends with a pre-dump', () =>
  hearing(async ({ port, cache }) => {
    const one = await originalProxy(port)
    one.push(snapshot)
    one.image(snapshot, 'pages-1.img', pattern(8192))
    await one.end()
    await cache.says(/failed: the stream ended without inventory.img/)
    const [round] = chains()[0]?.directories ?? []
    const two = await originalProxy(port)
    two.push(snapshot)
    for (const [name, bytes] of imagesOf(round as string)) two.image(snapshot, name, bytes)
    await two.end()
    await cache.says(/failed: a pre-dump has pages and no process/)
    assert.not.match(cache.stderr(), /sealed/)
  }))

test('a header error ends its connection, and parked restores do not hang (3.3)', () =>
  hearing(
    async ({ port, cache, image }) => {
      const parked = image('inventory.img').catch(() => 'closed')
      await cache.says(/waiting for/)
      const proxy = await originalProxy(port)
      proxy.push(snapshot)
      for (const [name, bytes] of real) proxy.image(snapshot, name, bytes)
      proxy.raw(Buffer.from('ffffffff', 'hex'))
      // The cache closes it.
      await within(proxy.end())
      await cache.says(/failed: criu --remote: a message that has 4294967295 bytes/)
      assert.is(await within(parked, 'the end of the parked restore', 10_000), 'closed')
      const next = await originalProxy(port)
      next.push(snapshot)
      for (const [name, bytes] of real) next.image(snapshot, name, bytes)
      await next.end()
      await cache.says(/sealed: 13 images/)
      assert.ok((await image('inventory.img'))?.equals(real.get('inventory.img') as Buffer))
    },
    ['--timeout', '1'],
  ))

for (const [what, images, more] of [
  ['before its first image', [], ''],
  ['without inventory.img', ['core-18177.img'], ''],
  ['with an entry that is wrong (3.3)', ['core-18177.img', 'inventory.img'], 'ffffffff'],
] as const) {
  test(`a dump that failed ${what} refuses the restore that waits for it, at once`, () =>
    hearing(async ({ port, cache, restores }) => {
      const parked = reasonOf(fakeRemote(restores, snapshot).pull())
      await cache.says(/waiting for/)
      const proxy = await originalProxy(port)
      proxy.push(snapshot)
      for (const name of images) proxy.image(snapshot, name, real.get(name) as Buffer)
      proxy.raw(Buffer.from(more, 'hex'))
      await proxy.end()
      assert.match(String(await within(parked, 'the end of the parked restore', 10_000)), 'Unexpected error 5')
    }))
}

test('an image that is written again is replaced', () =>
  hearing(async ({ port, cache, image }) => {
    const proxy = await originalProxy(port)
    proxy.push(snapshot)
    proxy.image(snapshot, 'files.img', pattern(100_000, 7))
    for (const [name, bytes] of real) proxy.image(snapshot, name, bytes)
    await proxy.end()
    await cache.says(/sealed: 13 images/)
    assert.ok((await image('files.img'))?.equals(real.get('files.img') as Buffer))
  }))

test('what is added to an image is behind what there was', () =>
  hearing(async ({ port, cache, image }) => {
    const proxy = await originalProxy(port)
    proxy.push(snapshot)
    const ghost = pattern(300_000, 3)
    for (const end of [1, 5000, 200_000, 300_000]) {
      proxy.raw(
        encode(remoteImageEntry, { name: 'ghost-1.img', snapshot_id: snapshot, open_mode: openMode.append, size: end }),
      )
      proxy.raw(ghost.subarray(end === 1 ? 0 : end === 5000 ? 1 : end === 200_000 ? 5000 : 200_000, end))
    }
    for (const [name, bytes] of real) proxy.image(snapshot, name, bytes)
    await proxy.end()
    await cache.says(/sealed: 14 images/)
    assert.ok((await image('ghost-1.img'))?.equals(ghost))
  }))

test('memory has its limit, also for an image-proxy that says more than it sends', () =>
  hearing(
    async ({ port, cache }) => {
      const proxy = await originalProxy(port)
      proxy.push(snapshot)
      proxy.raw(encode(remoteImageEntry, { name: 'pages-1.img', snapshot_id: snapshot, open_mode: 1, size: 2 ** 40 }))
      for (let mib = 0; mib < 12; mib++) proxy.raw(Buffer.alloc(2 ** 20, 1))
      await proxy.end()
      await cache.says(/failed: the memory for images is full/)
    },
    ['--max-memory', '8M'],
  ))

const names = (received: { images: Map<string, Buffer> }): string[] => [...received.images.keys()]

async function sending(body: (proxy: Daemons['proxy'], socket: string) => Promise<void>, options: string[] = []) {
  const { path, remove } = temporary()
  const cache = await originalCache()
  const proxy = impatient(await startProxy(path, cache.port, [...remote, '--snapshot', snapshot, ...options]))
  try {
    await body(proxy, join(path, 'streamer-capture.sock'))
    return await within(cache.received, 'the end of the stream')
  } finally {
    cache.close()
    await proxy.stop()
    remove()
  }
}

test('our proxy, to an image-cache that reads at once: list first, inventory.img last, no empty images', async () => {
  const pages = pattern(5_000_000, 4)
  const received = await sending(async (proxy, socket) => {
    const criu = fakeDump(socket)
    await criu.image('inventory.img', Buffer.from('inventory'))
    await criu.image('empty.img', Buffer.alloc(0))
    for (let at = 0; at < 100; at++) await criu.image(`core-${at}.img`, pattern(700 + at, at))
    await criu.image('pages-1.img', pages)
    criu.close()
    await proxy.says(/snapshot \/tmp\/dump sent: 102 images/)
  })
  assert.is(received.flaw, undefined)
  assert.equal(names(received).slice(0, 2), [' parent', 'null parent'])
  assert.is(received.images.get(' parent')?.toString('hex'), `0b0000000a09${Buffer.from(snapshot).toString('hex')}`)
  assert.is(names(received).at(-1), `${snapshot} inventory.img`)
  assert.is(names(received).length, 2 + 102)
  assert.ok(received.images.get(`${snapshot} pages-1.img`)?.equals(pages))
})

test('the stream ends when every image that is being written was sent, and not with the socket', async () => {
  const received = await sending(async (proxy, socket) => {
    const criu = fakeDump(socket)
    const { closeFd } = await import('../../lib/kernel/readiness.ts')
    const { writeAll } = await import('../../lib/kernel/transfer.ts')
    const late = criu.open('pages-1.img')
    await criu.image('inventory.img', Buffer.from('inventory'))
    criu.close()
    await new Promise((resolve) => setTimeout(resolve, 300))
    await writeAll(late, pattern(100_000))
    closeFd(late)
    await proxy.says(/sent: 2 images/)
  })
  assert.equal(names(received).slice(2), [`${snapshot} pages-1.img`, `${snapshot} inventory.img`])
})

test('a dump that fails leaves a stream without inventory.img', async () => {
  const received = await sending(async (proxy, socket) => {
    const criu = fakeDump(socket)
    await criu.image('core-1.img', pattern(1000))
    criu.close()
    await proxy.says(/failed: the dump did not finish: inventory.img is missing/)
  })
  assert.is(received.flaw, undefined)
  assert.equal(names(received).slice(2), [`${snapshot} core-1.img`])
})

test('an image beyond --max-memory fails its dump', async () => {
  await sending(
    async (proxy, socket) => {
      const criu = fakeDump(socket)
      await criu.image('pages-1.img', Buffer.alloc(12 * 2 ** 20)).catch(() => {})
      criu.close()
      await proxy.says(/failed: the memory for images is full/)
    },
    ['--max-memory', '8M'],
  )
})

test('a program whose -D cannot be seen is sent under --snapshot, or not at all', async () => {
  const both = await daemons({ proxy: remote, cache: remote })
  try {
    const criu = fakeDump(join(both.source, 'streamer-capture.sock'))
    await criu.image('core-1.img', pattern(100)).catch(() => {})
    await both.proxy.says(/failed: cannot see the -D of this criu/)
    criu.close()
  } finally {
    await both.stop()
  }
})

test('what does not go with it is refused before anything is done', async () => {
  const { path, remove } = temporary()
  const flags = ['--port', '1', '-D', join(path, 'd'), ...remote]
  const proxy = await run('proxy', [...flags, '--until', 'running'])
  assert.is(proxy.code, 2)
  assert.match(proxy.stderr, /error: --wire criu-remote and --until running do not go together/)
  const cache = await run('cache', [...flags, '--keep'])
  assert.is(cache.code, 2)
  assert.match(cache.stderr, /error: --wire criu-remote and --keep do not go together/)
  assert.equal(readdirSync(path), [])
  remove()
})

test.run()
