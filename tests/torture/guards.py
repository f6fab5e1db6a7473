"""Every guard that we know of: the line that has it, what it becomes without, and a quick test that then fails.

Paths of tests are below `tests/`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Guard:
    name: str
    file: str
    line: str  # occurs once in the file
    without: str
    test: str


def never(condition: str) -> str:
    """An `if` that never holds."""
    return f"if False and ({condition.removeprefix('if ').removeprefix('elif ').removesuffix(':')}):"


def dropped(name: str, file: str, condition: str, test: str) -> Guard:
    """A guard that is an `if` or an `elif`, which never holds any more."""
    keyword = "el" if condition.startswith("elif") else ""
    return Guard(name, file, condition, keyword + never(condition), test)


HEADER, FORMATS = "prefix_store/test_header.py", "prefix_store/test_formats.py"
IS_REFUSED = f"{HEADER}::test_what_is_not_plainly_right_is_refused_in_a_short_sentence"
DOES_NOT_FIT = f"{FORMATS}::test_what_does_not_fit_is_refused_and_says_why"
ENGINE, FAIRNESS = "batching/test_engine.py", "batching/test_fairness.py"
KEYS, HTTP, BAD = "prefix_store/test_tenant_registry.py", "server/test_http.py", "server/test_bad_inputs.py"
KEY_REFUSED = f"{KEYS}::test_every_key_that_is_not_good_is_refused_in_the_same_words"
NO_JSON, NO_VALUE = (
    f"{HTTP}::test_a_body_that_is_no_json_is_400",
    f"{HTTP}::test_a_value_that_json_or_the_schema_should_not_hold_is_422",
)

FILES = [
    dropped("header limit", "prefix_store/header.py", "if num_header_bytes > MAX_HEADER_BYTES:", IS_REFUSED),
    dropped("header cut short", "prefix_store/header.py", "if len(text) < num_header_bytes:", IS_REFUSED),
    dropped("nothing before the header", "prefix_store/header.py",
            'if not text.startswith(b"{") or not text.rstrip(b" ").endswith(b"}"):', IS_REFUSED),
    dropped("duplicate keys", "prefix_store/header.py", "if len(fields) < len(pairs):", IS_REFUSED),
    Guard("rank", "prefix_store/header.py", "1 <= len(shape) <= MAX_RANK", "1 <= len(shape)", IS_REFUSED),
    dropped("size of a tensor", "prefix_store/header.py",
            "if entry.end - entry.start != math.prod(shape) * ITEM_BYTES[dtype]:", IS_REFUSED),
    dropped("holes and overlaps", "prefix_store/header.py", "if tensor.start != position:", IS_REFUSED),
    dropped("trailing bytes", "prefix_store/header.py", "if position != num_bytes:", IS_REFUSED),
    dropped("surrogates in names", "prefix_store/header.py", "if not _is_unicode(name):", IS_REFUSED),
    Guard("magnitude", "prefix_store/formats.py", "MAX_MAGNITUDE = 1e4", "MAX_MAGNITUDE = 1e39", DOES_NOT_FIT),
    Guard("NaN in a file", "prefix_store/formats.py", "if not (low >= -MAX_MAGNITUDE and high <= MAX_MAGNITUDE):",
          "if low < -MAX_MAGNITUDE or high > MAX_MAGNITUDE:", DOES_NOT_FIT),
    dropped("fingerprint", "prefix_store/formats.py",
            "if fingerprint is not None and made_for is not None and made_for != fingerprint:", DOES_NOT_FIT),
    dropped("room for a prompt", "prefix_store/formats.py",
            "if not 1 <= num_virtual_tokens < shape.n_positions:", DOES_NOT_FIT),
]  # fmt: skip

STORE = [
    dropped("hash of what is loaded", "prefix_store/store.py",
            "if hashlib.sha256(body).hexdigest() != file.sha256:",
            "prefix_store/test_store.py::test_a_damaged_file_fails_its_own_task_until_it_is_uploaded_again"),
    Guard("memory by tenant", "prefix_store/store.py", "return tenant, version.native_sha256, version.kind",
          'return "", version.native_sha256, version.kind',
          "prefix_store/test_store.py::test_tenants_share_neither_tasks_nor_files_nor_memory"),
    Guard("memory by bytes", "prefix_store/store.py", "return tenant, version.native_sha256, version.kind",
          "return tenant, str(version.version), version.kind",
          "prefix_store/test_store.py::test_memory_is_bounded_and_what_was_pushed_out_is_loaded_again"),
    Guard("conditional writes", "prefix_store/bucket.py", "        self._probe()\n", "",
          "prefix_store/test_home.py::test_a_bucket_that_lets_a_file_be_created_twice_is_refused"),
    dropped("a registry that many share", "prefix_store/home.py",
            'if registry_url is None or not registry_url.startswith("postgresql"):',
            "prefix_store/test_home.py::test_what_many_cannot_share_safely_is_refused"),
    Guard("what others changed", "prefix_store/pointers.py", "self._clock() < read_at + self._max_seconds", "True",
          "prefix_store/test_pointers.py::test_what_was_read_is_asked_for_again_after_two_seconds"),
    Guard("what others deleted", "prefix_store/pointers.py",
          "self._pointers.pop(key, None)  # deleted by somebody else, above all", "pass",
          "prefix_store/test_pointers.py::test_what_is_said_to_be_gone_does_not_come_back_when_nobody_can_be_asked"),
    Guard("keys in an outage", "prefix_store/principals.py", " or started >= last.at_most_until", "",
          f"{KEYS}::test_a_key_that_was_good_stays_so_for_as_long_as_an_outage_may_last_and_it_is_valid"),
    Guard("revoked keys in an outage", "prefix_store/principals.py",
          "self._remembered.pop(secret_sha256, None)", "pass",
          f"{KEYS}::test_a_key_that_was_refused_is_not_good_again_in_an_outage"),
    dropped("another backbone", "prefix_store/store.py", "if version.stale:",
            "prefix_store/test_store.py::test_under_another_backbone_versions_are_stale_and_a_new_upload_heals"),
    dropped("quarantine", "prefix_store/store.py", "if version.quarantined is not None:",
            "prefix_store/test_upkeep.py::test_a_quarantined_version_is_served_no_more_until_it_is_released"),
    Guard("fsync of a file", "prefix_store/disk.py", "os.fsync(file.fileno())", "pass",
          "prefix_store/test_blobs.py::test_a_failed_write_leaves_nothing_and_the_next_one_works"),
    Guard("fsync of a folder", "prefix_store/blobs.py", "fsync_directory(folder)", "pass",
          "prefix_store/test_blobs.py::test_a_write_whose_folder_could_not_be_synced_is_not_answered_for"),
    Guard("fsync of a commit", "prefix_store/database.py", "synchronous=FULL", "synchronous=NORMAL",
          "prefix_store/test_registry.py::test_a_commit_reaches_the_disk_before_it_is_answered_for"),
    Guard("temporaries of a failed write", "prefix_store/blobs.py", "temporary.unlink(missing_ok=True)", "pass",
          "prefix_store/test_blobs.py::test_a_failed_write_leaves_nothing_and_the_next_one_works"),
    Guard("temporaries of a killed process", "prefix_store/blobs.py", "left_behind.unlink(missing_ok=True)", "pass",
          "prefix_store/test_blobs.py::test_what_a_killed_process_left_half_written_is_removed_at_the_next_start"),
    dropped("checksums of records", "prefix_store/records.py", "if not is_sound(table, values):",
            "prefix_store/test_durability.py::test_every_flipped_bit_is_found_and_nothing_wrong_is_served"),
    Guard("one process", "prefix_store/lock.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB",
          "prefix_store/test_lock.py::test_a_directory_that_is_open_is_refused_and_left_alone"),
    dropped("folders of tenants", "prefix_store/names.py", "if _PLAIN_FOLDER.fullmatch(tenant):",
            "prefix_store/test_names.py::test_a_plain_tenant_has_a_folder_of_its_name"),
    Guard("tenants' names as paths", "prefix_store/names.py", "if _PLAIN_FOLDER.fullmatch(tenant):", "if True:",
          "prefix_store/test_blobs.py::test_no_tenants_name_leads_out_of_the_directory"),
    dropped("names of tasks", "prefix_store/names.py", "if not is_task_id(task_id):",
            "prefix_store/test_names.py::test_anything_else_is_not_and_the_message_stays_one_short_line"),
    dropped("quota of tasks", "prefix_store/quotas.py", "if num_tasks > limits.max_tasks and num_new_tasks:",
            "prefix_store/test_quotas.py::test_one_task_too_many_is_refused_and_leaves_no_file"),
    dropped("quota of bytes", "prefix_store/quotas.py", "if num_bytes > limits.max_bytes:",
            "prefix_store/test_quotas.py::test_one_byte_too_many_is_refused_and_what_is_kept_already_is_not"),
    Guard("If-Match", "prefix_store/registry.py", "    raise PreconditionFailed(if_match, served_sha256)", "    return",
          "prefix_store/test_store.py::test_preconditions_compare_with_the_served_version"),
    dropped("one public task of a name", "prefix_store/registry.py",
            "if other is not None and other.tenant != tenant:",
            "prefix_store/test_public_tasks.py::test_one_name_means_one_public_task"),
]  # fmt: skip

ACCESS = [
    Guard("keys compared in constant time", "prefix_store/tenant_registry.py",
          'hmac.compare_digest(secret_sha256, str(key["secret_sha256"]))', 'secret_sha256 == key["secret_sha256"]',
          f"{KEYS}::test_secrets_are_compared_in_constant_time"),
    Guard("the secret", "prefix_store/tenant_registry.py", "if not (is_same and ", "if not (", KEY_REFUSED),
    Guard("expired keys", "prefix_store/tenant_registry.py", "seconds_left > 0 and ", "", KEY_REFUSED),
    Guard("revoked keys", "prefix_store/tenant_registry.py", "proved.revoked_at is None and ", "", KEY_REFUSED),
    Guard("disabled tenants", "prefix_store/tenant_registry.py", " and not owner.disabled", "", KEY_REFUSED),
    Guard("only hashes are kept", "prefix_store/keys.py",
          'return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()', "return secret",
          f"{KEYS}::test_the_secret_is_kept_nowhere"),
    Guard("tasks by tenant", "prefix_store/rows.py",
          "select(tasks).where(tasks.c.tenant == tenant, tasks.c.task_id == task_id)",
          "select(tasks).where(tasks.c.task_id == task_id)",
          "server/test_access.py::test_another_tenants_task_reads_like_an_unknown_one"),
    Guard("404 of another tenant's task", "prefix_store/errors.py",
          """super().__init__(f"no task '{shown(task_id)}'")""", """super().__init__(f"no task {id(self)}")""",
          "server/test_access.py::test_another_tenants_task_reads_like_an_unknown_one"),
    Guard("scopes", "server/access.py", "is_open = not self.scopes or bool(principal.scopes & self.scopes)",
          "is_open = True", "server/test_access.py::test_a_key_opens_its_scopes_and_no_other"),
    dropped("public tasks are an operator's", "server/routes/tasks.py",
            "if patch.public is not None and Scope.OPERATOR not in principal.scopes:",
            "server/test_access.py::test_only_an_operator_makes_a_task_of_its_tenant_public"),
    dropped("no keys, no network", "server/app.py",
            "if not (has_keys or settings.no_auth or is_loopback(settings.host)):",
            "server/test_access.py::test_a_server_without_keys_serves_this_machine_only_unless_told_so_in_words"),
]  # fmt: skip

BATCH = [
    dropped("finite check of a row", "batching/engine.py", "elif not result.is_finite:",
            f"{ENGINE}::test_a_row_whose_prefix_gives_non_finite_logits_fails_alone"),
    Guard("slots are zeroed", "batching/engine.py", "self.cache.clear(slot)", "pass",
          f"{ENGINE}::test_a_compile_that_is_not_finite_fails_and_leaves_nothing_in_its_slot"),
    Guard("slots begin as zeros", "batching/kv_cache.py",
          "self.keys = torch.zeros(size, dtype=dtype, device=device)",
          'self.keys = torch.full(size, float("nan"), dtype=dtype, device=device)',
          f"{ENGINE}::test_slots_begin_as_zeros"),
    Guard("later positions are masked", "batching/attention.py",
          'scores.masked_fill_(span.is_later, float("-inf"))', "scores",
          f"{ENGINE}::test_nan_in_free_slots_and_large_numbers_above_live_rows_change_nothing"),
    dropped("the context", "batching/checks.py", "if num_tokens > max_model_len:",
            f"{ENGINE}::test_a_request_that_does_not_fit_the_context_is_refused_before_it_is_queued"),
    dropped("the vocabulary", "batching/checks.py",
            "if not all(0 <= token_id < backbone.vocab_size for token_id in token_ids):",
            f"{ENGINE}::test_a_request_that_does_not_fit_the_context_is_refused_before_it_is_queued"),
    dropped("slots that there are", "batching/checks.py", "if sequence.num_slots_needed > max_num_seqs:",
            f"{ENGINE}::test_a_request_that_does_not_fit_the_context_is_refused_before_it_is_queued"),
    dropped("shape of a prefix", "batching/checks.py",
            "if (n_layer, two, n_head, head_dim) != (shape.n_layer, 2, shape.n_head, shape.head_dim):",
            f"{ENGINE}::test_what_does_not_fit_the_backbone_is_refused"),
    Guard("halves of a batch that raised", "batching/containment.py",
          "if len(items) == 1:\n        return [Failure(reason)]",
          "if True:\n        return [Failure(reason)] * len(items)",
          "batching/test_containment.py::test_a_poisoned_rows_mates_say_what_they_say_without_it"),
    dropped("a broken device", "batching/containment.py",
            "if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):",
            "batching/test_containment.py::test_a_device_that_cannot_be_trusted_any_more_is_no_rows_fault"),
    Guard("slots are given back", "batching/scheduler.py", "self._slots.give_back(slot)", "pass",
          f"{ENGINE}::test_an_abort_frees_the_slots_at_once_and_is_reported"),
    Guard("whose turn it is", "batching/fairness.py", "key=lambda name: self._accounts[name].served", "key=str",
          f"{FAIRNESS}::test_backlogged_tenants_are_served_by_their_weights"),
    Guard("output is charged", "batching/fairness.py",
          "account.served += OUTPUT_TOKEN_COST * num_tokens / account.weight",
          "pass", f"{FAIRNESS}::test_a_tenant_with_longer_answers_gets_fewer_of_them"),
    Guard("prompts are charged", "batching/fairness.py",
          "account.served += PROMPT_TOKEN_COST * num_prompt_tokens / account.weight", "pass",
          f"{FAIRNESS}::test_a_cancelled_requests_tokens_stay_charged"),
    Guard("who left still owes", "batching/fairness.py", "self._owed[tenant] = account.served", "pass",
          f"{FAIRNESS}::test_a_tenant_that_leaves_for_a_moment_still_owes_what_it_was_served"),
    Guard("who returns is lifted", "batching/fairness.py", "max(self._least_served, self._owed.pop(tenant, 0.0))",
          "self._owed.pop(tenant, 0.0)", f"{FAIRNESS}::test_a_tenant_that_returns_has_saved_nothing_up"),
    Guard("shares of the slots", "batching/fairness.py", "for tenant in within or slots_wanted",
          "for tenant in slots_wanted",
          f"{FAIRNESS}::test_while_others_wait_below_their_share_nobody_gets_slots_beyond_its_own"),
    Guard("prompts in pieces", "batching/scheduler.py", "num_tokens = min(step.num_new_tokens, budget)",
          "num_tokens = step.num_new_tokens", f"{ENGINE}::test_a_long_prompt_does_not_hold_up_rows_that_decode"),
]  # fmt: skip

SERVER = [
    Guard("trial run", "server/routes/tasks.py",
          "await unless_disconnected(request, try_out(services, caller, candidate))", "pass",
          f"{BAD}::test_finite_numbers_that_overflow_on_this_backbone_are_422_after_a_trial_run"),
    dropped("a body's declared length", "server/http.py", "if num_bytes > max_bytes:",
            f"{BAD}::test_an_upload_that_says_that_it_is_too_large_is_413_before_it_comes"),
    dropped("a body's length", "server/http.py", "if len(body) > max_bytes:",
            f"{HTTP}::test_a_body_over_the_limit_is_413_by_its_length_or_while_it_is_read"),
    dropped("encodings", "server/http.py", 'if "content-encoding" in request.headers:',
            f"{HTTP}::test_another_content_type_or_any_encoding_is_415"),
    dropped("content types", "server/http.py", 'if content_type_of(request) != "application/json":',
            f"{HTTP}::test_another_content_type_or_any_encoding_is_415"),
    dropped("duplicate JSON keys", "server/http.py", "if len(value) != len(pairs):", NO_VALUE),
    dropped("numbers beyond a float", "server/http.py", "if not math.isfinite(value):", NO_VALUE),
    Guard("NaN in JSON", "server/http.py", "parse_constant=_no_constant, ", "", NO_VALUE),
    dropped("surrogates in JSON", "server/http.py", 'if "\\\\u" in text:', NO_VALUE),
    Guard("nesting of JSON", "server/http.py", "except RecursionError:", "except ZeroDivisionError:", NO_JSON),
    dropped("declared hash", "server/routes/tasks.py", "if declared is not None and declared.lower() != actual:",
            "server/test_tasks.py::test_a_declared_hash_is_compared"),
    dropped("length of a prompt", "server/generation.py", "if num_bytes > max_bytes:",
            "server/test_generate.py::test_a_prompt_over_the_limit_is_refused_before_tokenizing"),
    dropped("deadline of a request", "server/running.py", "if now >= self._gives_up_at:",
            "server/test_faults.py::test_a_request_that_takes_too_long_is_504_or_ends_its_stream"),
    dropped("deadline of the queue", "server/running.py", "if now >= self._queued_until:",
            "server/test_faults.py::test_a_wait_in_the_queue_that_is_too_long_is_504"),
    dropped("two lengths of a body", "server/middleware.py",
            'if "transfer-encoding" in headers and "content-length" in headers:',
            f"{BAD}::test_broken_or_oversized_headers_are_refused"),
    dropped("names of hosts", "server/middleware.py",
            'if names and scope["path"] not in PROBES and name.lower() not in names:',
            f"{HTTP}::test_only_names_that_the_operator_knows_are_answered_to"),
    Guard("length of headers", "server/protocol.py", "MAX_HEADER_BYTES = 16 << 10", "MAX_HEADER_BYTES = 16 << 20",
          f"{BAD}::test_broken_or_oversized_headers_are_refused"),
    Guard("deadline of headers", "server/protocol.py",
          "self._deadline = self.loop.call_later(self._header_timeout, self._close)", "pass",
          f"{BAD}::test_headers_that_do_not_come_are_cut_off"),
    Guard("pace of a body", "server/body_pace.py",
          "min(self._timeout, GRACE + self._num_bytes / MIN_BYTES_PER_SECOND)", "self._timeout",
          "server/test_body_pace.py::test_a_body_below_the_pace_is_given_up_after_the_grace"),
    Guard("deadline of a body", "server/body_pace.py",
          "min(self._timeout, GRACE + self._num_bytes / MIN_BYTES_PER_SECOND)",
          "GRACE + self._num_bytes / MIN_BYTES_PER_SECOND",
          "server/test_body_pace.py::test_a_fast_body_that_does_not_end_is_given_up_too"),
    Guard("who left is aborted", "server/async_engine.py", "self._inbox.put(*map(Abort, open_ids))", "pass",
          "server/test_faults.py::test_a_client_that_leaves_a_stream_frees_its_slot"),
    Guard("request ids of our own", "server/generation.py", "request_id=secrets.token_hex(16)",
          "request_id=caller.request_id",
          f"{BAD}::test_the_same_request_id_at_the_same_time_is_answered_twice"),
    dropped("a tenant's queue", "server/room.py", "if wanted > self._num_slots + waiting:",
            "server/test_limits.py::test_a_tenants_own_queue_is_bounded_by_twice_the_slots_or_its_limit"),
    Guard("the queue", "server/room.py", "if self.num_rows + num_rows > self.max_rows and",
          "if False and", "server/test_limits.py::test_full_queues_of_others_do_not_keep_a_tenant_out"),
    Guard("room before the body", "server/admission.py", "services.check_open(principal)", "pass",
          "server/test_admission.py::test_there_is_no_room_before_the_body_has_come"),
    Guard("rates before the body", "server/admission.py", "services.limits.admit(principal)", "pass",
          "server/test_limits.py::test_a_tenant_over_its_limit_is_429_before_its_prompt_is_read"),
    dropped("a tenant's rates", "server/limits.py", "if seconds > 0:",
            "server/test_limits.py::test_requests_beyond_the_minutes_are_told_when_to_come_again"),
    dropped("versions that fail", "server/failure_watch.py", "if len(failed_at) < MAX_FAILURES:",
            "server/test_containment.py::test_three_failures_within_ten_minutes_are_too_many"),
    Guard("what errors repeat", "prefix_store/errors.py", "if len(escaped) <= MAX_SHOWN", "if True",
          f"{BAD}::test_an_error_repeats_no_more_than_64_escaped_characters"),
]  # fmt: skip

GUARDS = [*FILES, *STORE, *ACCESS, *BATCH, *SERVER]
