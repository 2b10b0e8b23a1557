import { parseArgs } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { cacheOptions, readCacheOptions, readCacheRequest } from '../../lib/cli/cache-options.ts'
import { throwsFault } from '../expect.ts'

const test = suite('cli/cache-options')

const values = (line: string) => parseArgs({ args: ['-D', 'x', ...line.split(' ')], options: cacheOptions }).values
const request = (line: string) => readCacheRequest(values(line))
const cache = (line: string, criuOptions: string[] = []) => readCacheOptions(values(line), criuOptions)

test('a cache is asked, or is to be started', () => {
  assert.is(request('--port 0 --keep'), undefined)
  const { verdict, ...asked } = request('--ls --json') ?? {}
  assert.is(verdict, undefined)
  assert.equal(asked, { directory: 'x', ls: true, json: true, rm: undefined, pin: undefined, unpin: undefined })
  assert.is(request('--rm a')?.rm, 'a')
  assert.is(request('--pin a')?.pin, 'a')
  assert.is(request('--unpin a')?.unpin, 'a')
  assert.equal(request('--let-run a')?.verdict, { id: 'a', verdict: 'go' })
  assert.equal(request('--drop a')?.verdict, { id: 'a', verdict: 'drop' })
})

test('a cache is asked one thing', () => {
  for (const line of [
    '--ls --rm x',
    '--rm x --drop x',
    '--ls --let-run x',
    '--let-run x --drop x',
    '--pin x --unpin x',
    '--pin x --rm x',
    '--unpin x --ls',
    '--json',
  ]) {
    throwsFault('USAGE', () => request(line), line)
  }
  throwsFault('USAGE', () => readCacheRequest(parseArgs({ args: ['--ls'], options: cacheOptions }).values))
})

test('what becomes of images that are restored', () => {
  const { keep, dedup, releaseEarly } = cache('--port 0 --keep')
  assert.equal([keep, dedup, releaseEarly], [true, false, false])
  assert.is(cache('--port 0 --release-early').releaseEarly, true)
  throwsFault('USAGE', () => cache('--port 0 --keep --release-early'))
})

test('options for criu are for a cache that restores', () => {
  assert.equal(cache('--port 0 --restore --criu c', ['-v4']).restore, { criu: 'c', options: ['-v4'] })
  assert.is(cache('--port 0').restore, undefined)
  throwsFault('USAGE', () => cache('--port 0', ['-v4']))
})

test('the wire of criu --remote, and what it cannot do', () => {
  assert.is(cache('--port 0 --keep').criuRemote, false)
  assert.is(cache('--port 0 --wire criu-remote').criuRemote, true)
  throwsFault('USAGE', () => cache('--port 0 --wire criu'))
  const tls = '--tls --tls-cacert a --tls-cert b --tls-key c'
  for (const odd of ['--snapshot a', '--restore', '--keep', '--release-early', tls, '--key-file k']) {
    const { message } = throwsFault('USAGE', () => cache(`--port 0 --wire criu-remote ${odd}`))
    assert.ok(message.startsWith(`--wire criu-remote and ${odd.split(' ')[0]}`), message)
  }
})

test.run()
