/**
 * Dumps of a criu that somebody else starts, by the proxy's page server port, with the real CRIU. This kernel may track
 * no changes: then they are full.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { lockMarks } from '../../lib/kernel/process.ts'
import { within } from '../expect.ts'
import { real } from '../support/criu.ts'
import { patternLoad } from '../support/loads.ts'
import { type Running, root, run, start } from '../support/run.ts'
import { type Stage, staged } from '../support/stage.ts'

const test = suite('real-criu/page-port')
const load = patternLoad(8)

/** The oldest has another layout of records. */
const [oldest, newer] = ['trixie', 'sid'].map((suite) => join(root, '.criu', suite, 'criu')) as [string, string]

async function pageProxy(stage: Stage, port: string, ...options: string[]): Promise<{ proxy: Running; pages: string }> {
  const proxy = await stage.proxy(port, '--page-server-port', '0', ...options)
  const [, pages = ''] = await proxy.says(/listening on 127\.0\.0\.1:(\d+)/)
  return { proxy, pages }
}

function dump(criu: string, { folder, load, source }: Stage, pages: string, ...more: string[]): Running {
  mkdirSync(join(folder, 'images'))
  return start(
    criu,
    [
      ...['dump', '-t', String(load.pid), '-D', 'images', '--page-server', '--address', '127.0.0.1', '--port', pages],
      ...(more.length === 0 ? ['--action-script', join(source, 'post-dump')] : more),
    ],
    { cwd: folder },
  )
}

function pagePort(criu: string): void {
  for (const path of existsSync(oldest) ? [criu, oldest] : [criu]) {
    test(`a dump by the page server, handed over: ${path === criu ? 'this CRIU' : 'CRIU 4.1'}`, () =>
      staged(criu, load, async (stage) => {
        const { cache, port } = await stage.cache('--restore')
        const { proxy, pages } = await pageProxy(stage, port, '--until', 'running')
        const dumped = await dump(path, stage, pages).ended
        assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
        await stage.arrived()
        await proxy.says(/handed over: the source is gone, it runs on the target/)
        const left = readdirSync(join(stage.folder, 'images'))
        assert.not(
          left.some((name) => name.startsWith('pages-')),
          'pages on a disk',
        )
      }))
  }

  test('the cache has no room: the process runs on', () =>
    staged(criu, load, async (stage) => {
      const { port } = await stage.cache('--max-memory', '4M')
      const { proxy, pages } = await pageProxy(stage, port)
      const dumped = await dump(criu, stage, pages).ended
      assert.not(dumped.code === 0)
      await proxy.says(/failed: the target refused: the memory for images is full/)
      await stage.stayed()
    }))

  const both = ({ source }: Stage, ...more: string[]): string[] => ['--stream', '-D', source, ...more]
  const withScript = (stage: Stage): string[] => both(stage, '--action-script', join(stage.source, 'post-dump'))

  if (existsSync(oldest)) {
    const ways = [
      [oldest, 'CRIU 4.1', true],
      [oldest, 'CRIU 4.1, without our script', false],
      ...(existsSync(newer) ? [[newer, 'CRIU 4.2', true] as const] : []),
    ] as const
    for (const [path, how, scripted] of ways) {
      test(`images by the stream and pages by the page server are one dump: ${how}`, () =>
        staged(criu, load, async (stage) => {
          const { cache, port } = await stage.cache('--restore')
          const { proxy, pages } = await pageProxy(stage, port, ...(scripted ? ['--until', 'running'] : []))
          const dumped = await dump(path, stage, pages, ...(scripted ? withScript(stage) : both(stage))).ended
          assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
          await cache.says(/restored in/)
          await stage.arrived()
          if (scripted) await proxy.says(/handed over: the source is gone, it runs on the target/)
        }))
    }

    test('images by the stream and pages by the page server, as only a file of options says: the process runs on', () =>
      staged(criu, load, async (stage) => {
        const { port } = await stage.cache('--restore')
        const { proxy, pages } = await pageProxy(stage, port, '--until', 'running')
        const file = join(stage.folder, 'criu.conf')
        writeFileSync(file, `stream\npage-server\naddress 127.0.0.1\nport ${pages}\n`)
        const options = ['--config', file, '-D', stage.source, '--action-script', join(stage.source, 'post-dump')]
        const dumped = await start(oldest, ['dump', '-t', String(stage.load.pid), ...options]).ended
        assert.not(dumped.code === 0)
        await proxy.says(/and not all of them come here/)
        await stage.stayed()
      }))

    test('images by the stream, and pages to a proxy that gets no others: the process runs on', () =>
      staged(criu, load, async (stage) => {
        const { port } = await stage.cache('--restore')
        const streamed = await stage.proxy(port)
        const other = start('proxy', ['--port', port, '-D', join(stage.folder, 'other'), '--page-server-port', '0'])
        const [, pages = ''] = await other.says(/listening on 127\.0\.0\.1:(\d+)/)
        const dumped = await dump(oldest, stage, pages, ...withScript(stage)).ended
        assert.not(dumped.code === 0)
        for (const proxy of [streamed, other]) await proxy.says(/and not all of them come here/)
        await other.stop()
        await stage.stayed()
      }))

    test('images by the stream, pages by the page server, and a cache without room: the process runs on', () =>
      staged(criu, load, async (stage) => {
        const { port } = await stage.cache('--max-memory', '4M')
        const { proxy, pages } = await pageProxy(stage, port)
        const dumped = await dump(oldest, stage, pages, ...withScript(stage)).ended
        assert.not(dumped.code === 0)
        await proxy.says(/failed: the target refused: the memory for images is full/)
        await stage.stayed()
      }))
  } else console.log('skipped: CRIU 4.1 is not there, and newer ones refuse --stream with --page-server')

  test('a second pre-copy of a process is refused before it does anything', () =>
    staged(criu, load, async ({ load: { pid }, cache, stayed, folder }) => {
      const { port } = await cache()
      const release = lockMarks(pid)
      const ran = await run('pre-copy', ['-t', String(pid), '--port', port, '-D', join(folder, 'owed')])
      release?.()
      assert.is(ran.code, 1)
      assert.is(
        ran.stderr,
        `pre-copy: error: another pre-copy is at work on process ${pid}, or on a tree that shares ` +
          `tasks with its own\npre-copy: hint: wait until it has ended; a proxy with rounds of it ` +
          `counts too, until it dumps it or ends\n`,
      )
      assert.not(existsSync(join(folder, 'owed')))
      await stayed()
    }))

  test('a dump by the port of a process that a pre-copy is at work on is refused: it would take the marks away', () =>
    staged(criu, load, async (stage) => {
      const { port } = await stage.cache('--restore')
      const { proxy, pages } = await pageProxy(stage, port)
      const release = lockMarks(stage.load.pid)
      const dumped = await dump(criu, stage, pages).ended
      release?.()
      assert.not(dumped.code === 0)
      await proxy.says(/a pre-copy, or another proxy, is at work on process/)
      await stage.stayed()
    }))

  const tracks = spawnSync(criu, ['check', '--feature', 'mem_dirty_track']).status === 0
  if (tracks) console.log('skipped: this kernel tracks changed pages; pre-copy itself is played in the virtual machine')
  else {
    test('pre-copy where the kernel tracks no changes: it says so, the process runs on, and nothing is left', () =>
      staged(criu, load, async (stage) => {
        const { port } = await stage.cache('--restore')
        const owed = join(stage.folder, 'owed')
        // Where the cache is out of reach that is no reason to wait for it, either.
        for (const cache of [port, '1']) {
          const ran = await within(run('pre-copy', ['-t', String(stage.load.pid), '--port', cache, '-D', owed]))
          assert.is(ran.code, 5)
          assert.match(
            ran.stderr,
            /^pre-copy: error: this kernel does not track changed pages.*\npre-copy: hint: .*\n$/,
          )
          assert.not(existsSync(owed), 'the directory that it has made is gone')
        }
        await stage.stayed()
      }))
  }

  test('without our script: the process is there in the end', () =>
    staged(criu, load, async (stage) => {
      const { cache, port } = await stage.cache('--restore')
      const { proxy, pages } = await pageProxy(stage, port)
      const dumped = await dump(criu, stage, pages, '-v0').ended
      assert.is(dumped.code, 0, dumped.stderr + proxy.stderr())
      await cache.says(/restored in/)
      await stage.arrived()
    }))

  test('whoever is no criu is sent away, and criu is served after it', () =>
    staged(criu, load, async (stage) => {
      const { cache, port } = await stage.cache('--restore')
      const { proxy, pages } = await pageProxy(stage, port)
      const stranger = net.connect(Number(pages), '127.0.0.1')
      stranger.on('error', () => {})
      stranger.write(Buffer.alloc(32))
      await new Promise((resolve) => stranger.once('close', resolve))
      await proxy.says(/the client of the page server port is not a criu that dumps/)
      const dumped = await dump(criu, stage, pages).ended
      assert.is(dumped.code, 0, dumped.stderr + proxy.stderr())
      await cache.says(/restored in/)
      await stage.arrived()
    }))
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else pagePort(real.path)

test.run()
