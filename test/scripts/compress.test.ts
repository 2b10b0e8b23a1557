/** --compress and --rate-limit, as a user gives them. */
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { startRelay } from '../support/breaking-relay.ts'
import { daemons, startCache, startProxy } from '../support/daemons.ts'
import { dumpAll, fakeDump, fakeRestore } from '../support/fake-criu.ts'
import { fixtures, run, shell, start, temporary } from '../support/run.ts'
import { pattern } from '../support/talk.ts'

const test = suite('scripts/compress')

const MIB = 2 ** 20
/** A third each is text, zeros and what does not shrink. */
const pages = Buffer.concat([Buffer.alloc(4 * MIB, 'line after line\n'), Buffer.alloc(4 * MIB), pattern(4 * MIB, 1)])
const images = { 'pages-1.img': pages, 'core-1.img': pattern(2000, 2) }

function sameImages(directory: string): void {
  for (const name of readdirSync(join(fixtures, 'images'))) {
    assert.ok(readFileSync(join(directory, name)).equals(readFileSync(join(fixtures, 'images', name))), name)
  }
}

test('a directory becomes a smaller stream, and is the same directory again', async () => {
  const { path, remove } = temporary()
  const size = async (how: string): Promise<number> => {
    const line = `dump-to-stdout --from-dir ${join(fixtures, 'images')} --compress ${how} > ${how}.img`
    const ran = await shell(`${line} && restore-from-socket --to-dir ${how} < ${how}.img`, { cwd: path })
    assert.is(ran.code, 0, ran.stderr)
    sameImages(join(path, how))
    return statSync(join(path, `${how}.img`)).size
  }
  const plain = await size('none')
  assert.ok((await size('lz4')) < plain / 1.5)
  remove()
})

test('a snapshot crosses compressed, with a key, over links that are cut, and restores as it was', async () => {
  const { path, remove } = temporary()
  writeFileSync(join(path, 'key'), pattern(32), { mode: 0o600 })
  const [source, target] = [join(path, 'source'), join(path, 'target')]
  const key = ['--key-file', join(path, 'key')]
  const { cache, port } = await startCache(target, key)
  const relay = await startRelay(port)
  relay.plan({ up: 100_000, how: 'cut' }, { up: 1_500_000, how: 'cut' }, { down: 2000, how: 'cut' })
  const proxy = await startProxy(source, relay.port, ['--compress', 'zstd', ...key])
  try {
    await dumpAll(fakeDump(join(source, 'streamer-capture.sock')), images)
    await proxy.says(/sent and sealed by the cache: 3 images/)
    assert.ok(relay.links >= 3, `${relay.links} links`)
    assert.ok(relay.up < 6 * MIB, `${relay.up} bytes`)
    const criu = fakeRestore(join(target, 'streamer-serve.sock'))
    for (const [name, bytes] of Object.entries(images)) assert.ok((await criu.image(name))?.equals(bytes), name)
    criu.close()
  } finally {
    await Promise.all([proxy.stop(), cache.stop()])
    relay.close()
    remove()
  }
})

test('a limited snapshot takes its time, and the time-out does not count it', async () => {
  const both = await daemons({ proxy: ['--rate-limit', '2M', '--timeout', '1'] })
  try {
    const begun = performance.now()
    await dumpAll(both.dump(), { 'pages-1.img': pattern(4 * MIB, 1) })
    await both.proxy.says(/sent and sealed by the cache: 2 images, 4\.00 MiB/)
    assert.ok(performance.now() - begun >= 0.8 * 2000)
  } finally {
    await both.stop()
  }
})

/** A shell line where the library of a codec is an empty file. */
function without(codec: string, line: string): string[] {
  const library = `$(ldconfig -p | sed -n 's/.*lib${codec}.so.1 .*=> //p' | head -1)`
  return ['--mount', 'bash', '-c', `mount --bind /dev/null $(readlink -f ${library}) && exec ${line}`]
}

if (process.getuid?.() !== 0) console.log('skipped: a library can only be hidden by root')
else {
  test('a sender says at once that a library is missing, and what to install', async () => {
    const { path, remove } = temporary()
    const line = `timeout 20 proxy --port 9 -D ${join(path, 'source')} --compress auto`
    const ran = await run('unshare', without('lz4', line))
    assert.is(ran.code, 1)
    const said = 'error: cannot use lz4: there is no liblz4.so.1 here\nproxy: hint: apt install liblz4-1'
    assert.is(ran.stderr, `proxy: ${said}\n`)
    assert.equal(readdirSync(path), [])
    remove()
  })

  test('a cache without the library refuses, and the source hears why', async () => {
    const { path, remove } = temporary()
    const cache = start('unshare', without('zstd', `cache --port 0 -D ${join(path, 'target')}`))
    const [, port = ''] = await cache.says(/listening on 127\.0\.0\.1:(\d+)/)
    const proxy = await startProxy(join(path, 'source'), port, ['--compress', 'zstd'])
    const plain = await startProxy(join(path, 'plain'), port)
    try {
      await dumpAll(fakeDump(join(path, 'source', 'streamer-capture.sock')), images).catch(() => {})
      await proxy.says(/failed: the target refused: cannot use zstd: there is no libzstd\.so\.1 here/)
      await cache.says(/failed: cannot use zstd/)
      await dumpAll(fakeDump(join(path, 'plain', 'streamer-capture.sock')), images)
      await plain.says(/sent and sealed/)
    } finally {
      await Promise.all([proxy.stop(), plain.stop(), cache.stop()])
      remove()
    }
  })
}

test.run()
