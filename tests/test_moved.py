"""A notebook of version 0.1 still runs: every public name that it could import is found, or its module says where."""

import importlib
import re
import subprocess
import sys
import warnings

import pytest

from calami.moved import GONE, MOVED

#: Public names of the modules of version 0.1.
NAMES = {
    "answers": """
        ASSUMPTIONS Answers METHOD PHOTONS QUESTIONS answer_questions onset_words true_onset write_answers
    """,
    "archive": """
        APT_URL BATCH DownloadProblem MANIFEST PATIENCE Patience Product S3_SERVER Token check_token
        check_whole download endings fetch fetch_apt find_token in_time list_products plan_download
        read_manifest safe_name search verify
    """,
    "calutil": """
        DIMENSIONS Data Peak RateImage find_peak
    """,
    "cm_analysis": """
        APERTURES Change Comparison FIT_RADIUS FLUX KERNEL_PARAMETERS Kernel KernelFit MIGRATION NOTHING
        NotComparable Onset POINTING_TOLERANCE_MAS PROCESSING_KEYWORDS Pair PatternFit RATE_PRODUCTS RULE
        SAME_KEYWORDS SIGNIFICANT SUM_APERTURE SUM_FLOOR UNCLEAR annuli beside common_product compare
        compare_all comparison_table current_behind derivatives fill_bad find_common_peak find_pairs
        fit_kernel fit_patterns judge kernel_from_dice kernel_from_ramps migration_or_nonlinearity
        migration_pattern observed_slope plot_change plot_contrast plot_profile pointing_difference quantify
        region_change slope_weights undersampled why_not_comparable
    """,
    "contrast": """
        CompanionFit ContrastCurve DEFINITIONS DetectionMap FalseAlarm MAS Options Prepared REMOVED_SIGMA
        add_companion analyse chi2_ratio chi2_sigma companion_fringe contrast_curve curve_table
        detection_map disc photon_curve plot_chi2 plot_curves plot_map position prepare remove_companion
        sample_factor search_companion sigma_of spot_response systematic_curve write_companion write_curves
        write_map
    """,
    "crds": """
        AIM_PIXEL AIM_V2V3 AUTHOR DARK_GROUPS HISTORY LINEARITY_ORDER OfflineCache PARAMETERS
        PUPIL_DIAMETERS PUPIL_PIXELS RULES Reference SATURATION_MARGIN SERVERLESS SIGNAL_THRESHOLDS
        USE_AFTER V3_IDEAL_ANGLE call_by_name certify default_cache detector_to_v2v3 hexagon
        linearity_coefficients offline_cache offline_environment offline_executor pupil_image run_offline
        use_offline_cache
    """,
    "dataset": """
        ACQUISITION_TYPES COMPACT_COLUMNS Dataset EXTENSIONS_EXPECTED Exposure FORMATS Facts Found Index
        NEEDED_KEYWORDS OBSERVABLE_PRODUCTS PRODUCT_ORDER Row SHARED_KEYWORDS SUFFIXES StderrOfTheMoment
        cache_folder cell_text columns_of find_files format_of read_facts read_many render role_of
        summary_table table_cells write_atomically
    """,
    "demo": """
        Demo TruthCheck check_truth reduce_all run_demo true_rate truth_table
    """,
    "detector": """
        ADC_WAVE DEAD DIAGONAL_RATIO DIAGONAL_STEPS Detector EDGE_STEPS EFFECTS HOT IPC_KERNEL
        MIGRATION_PRESETS Migration charge_ramp classical_nonlinearity collect convert cosmic_rays crossings
        departure find_migration interpixel_capacitance migration_flow simulate_ramps stripes
    """,
    "effects": """
        PLACES RATE STAR closure_phases departure_from_straight draw_pair expose late_minus_early mean_rate
        only show_effect visibilities
    """,
    "fringes": """
        CORE FALLBACK_SCALE_MAS FourierFix GROSS HEADER_KEYWORDS JUMP_DET LEAST_CHANGE LEAST_DISTANCE Mask
        OUTLIERS Observables PIPELINE_FIX RARE_JUMPS Setup UNLIKE band_of bands circular_mean closure_matrix
        find_outliers fit fringe_model independent_phases pairs_of phase_slope piston_matrix
        plot_closure_phases plot_residual plot_v2 rotated sandwich search_rotation shrunk_covariance solve
        star_image triangles_of wrap
    """,
    "headers": """
        AssociationName BLOCK_SIZE CARD_SIZE CalamiError CardProblem Column DETECTORS ExposureName
        FileProblem GuideStarName HDU Keywords NameProblem PRIMARY_KEYWORDS SCI_KEYWORDS SUMMARY_COLUMNS
        Stage3Name hdu_walk parse_name read_keywords
    """,
    "kernel": """
        DECISIVE HYPOTHESES KERNEL_RADIUS Kernel PATTERNS Verdict kernel_from_dice kernel_from_diced
        kernel_from_ramps kernel_table migration_or_nonlinearity patterns undo_capacitance
    """,
    "level1b": """
        ACQUISITION_EXPOSURES ADDED_LATER COMMENTS Ephemeris FILTER_WHEEL GROUP INT_TIMES Keywords
        L2_DISTANCE MAX_BYTES OPTIONAL Pointing REFERENCE_PIXEL RESET_EXTRA STAR_PIXEL Segment Timing V2_REF
        V3I_YANG V3_REF check_exposure compare_keywords ephemeris flight_pixel group_times integration_times
        is_added_later level1b_keywords pointing segments sky_to_detector timing write_level1b
    """,
    "mapping": """
        Entry MappingProblem NameFields TEMPLATES automatic_names find_name make_name parse_names read_names
        resolve same_file tag write_association
    """,
    "mitigation": """
        Departure Entry Exposure Mitigation RULES THRESHOLDS Version best_versions choose_reference
        departure equivalent_contrast fit_versions magnitudes mitigation_scan plot_bias plot_contrast
        process_versions standard_versions whole_frames with_step without_step
    """,
    "niriss": """
        CHARGELOSS DARK_E_PER_S DO_NOT_USE FILTERS Filter GAIN HOLE_CENTERS HOLE_FLAT_TO_FLAT HOLE_NAMES
        MIGRATION_LIMIT_E PIXEL_PITCH_UM PIXEL_SCALE_MAS READ_NOISE_E REFERENCE_PIXEL SATURATED SATURATION_E
        SIGNAL_LEVELS SUB80 SignalLevel Subarray adu_per_electron baselines ramp_time to_adu to_electrons
    """,
    "oifits": """
        BASELINE_TOLERANCE COLOURS COVARIANCE_EXTENSIONS KEPT_KEYWORDS OIData OIFITSWarning add_noise
        calibrate closure_covariance closure_matrix find_defects from_observables from_samples
        mean_and_covariance photon_errors plot_cp plot_uv plot_v2 point_source read_oifits reference_weights
        repair_errors selfcal wrap write_oifits write_products
    """,
    "onset": """
        Crossing DEFINITIONS FilterOnset HALF_BOX JUMP_DET LEVELLING LEVELLING_ERROR MAX_BLOCKS
        MOST_SATURATED NEEDS_RAMPS Onset POWERS REJECTION RampStatistics SATURATED_SHARE STEEPER UNIT_ADU
        VERSION WIDENING covariance_of_means noise_factor quantify ramp_statistics slope_of_sum
        statistics_of
    """,
    "optics": """
        COMMISSIONING DIFFUSION_MAS DWARF_TEMPERATURES Distortion JITTER_MAS MAS Pupil Source Spectrum
        blackbody detector_centers hexagon_transform monochromatic passband pixel_response psf
        sample_passband star_spectrum star_temperature tabulated
    """,
    "pipeline": """
        HOUSEKEEPING NOT_RECORDED Outcome Run chain_of check_parameters count_flags defaults flags_table
        main_product nondefault pipe_data reprocess step_table worker_pool
    """,
    "plans": """
        Companion DEFAULT_START DEFAULT_V3_PA EDGE_MARGIN ExposurePlan FILTER_OFFSETS OVERHEADS Observation
        PEAK_FRACTION PEAK_LADDER PLACEMENT_SCATTER PLAN_COLUMNS PRIMARY_DITHERS Plan PlanColumn PlanProblem
        READY_PLANS SCALES SIMULATED_STARS STARS SUBPIXEL_DITHERS Setup Star TARGET_PIXEL ZERO_POINTS
        check_plan dither_pattern groups_for_peak integrations_for lay_out magnitude_of_peak peak_rate
        plan_from_apt plan_from_table plan_table ready_plan to_j2000 total_rate write_plan
    """,
    "prep": """
        Bin Clean Dice FIXED_FLAGGED FIXED_FOUND FLUX_ESTIMATED FixBadPixels FourierFix Graft JUMP_DET
        KEYWORDS Layer MAD_FACTORS NOT_FIXED OUTLIER Outliers POOLED Piece Recipe SUPPORT_LIMIT
        SUPPORT_WIDENING Slice Truncate UNTOUCHED add_ramp_flags clip_sorted fill_from_neighbours
        find_outliers fingerprint_of forbidden input_facts is_current join_pieces make_products numbers_of
        numbers_text piece_of prep_data prep_many read_piece read_sidecar sidecar_path take_groups
        take_integrations write_pieces write_sidecar
    """,
    "program": """
        AptProgram BAND_WAVELENGTHS DWARF_COLORS LARGEST_APT PlannedExposure PlannedObservation ProgramView
        StarFacts apt_tree exposure_view filter_magnitude fullness health_table measure_peaks model_spectrum
        planned_against_executed plot_depths program_view read_apt reference_pairs setup_view star_facts
        target_table
    """,
    "rearrange": """
        Arrangement DITHER Join MUST_AGREE PAIRING_RULES Regroup SAME_PLACE StackDithers alike differences
        pair_references rearrange_data rearrange_sets
    """,
    "report": """
        PACKAGES figure_png file_record levels_table numbers_table run_record versions write_cm_report
    """,
    "saturation": """
        Advice DOCUMENTED_LIMIT_E Level advise effective_saturation meeting_level plot_saturation
        recommendation_table rising saturation_table write_parameter_files
    """,
    "simulate": """
        Instrument THRESHOLDS expected_files exposure_seed photo_current read_truth simulate_exposure
        simulate_plan truth truth_path
    """,
}


@pytest.mark.parametrize("old", NAMES)
def test_every_name_of_version_0_1_is_found(old):
    for name in NAMES[old].split():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            if (old, name) in GONE:
                with pytest.raises(AttributeError, match=re.escape(GONE[old, name])):
                    getattr(importlib.import_module(f"calami.{old}"), name)
            else:
                assert getattr(importlib.import_module(f"calami.{old}"), name) is not None


def test_an_old_path_warns_with_the_new_one():
    with pytest.warns(DeprecationWarning, match=r"calami\.oifits\.read_oifits is now calami\.fringes\.oifits"):
        from calami.oifits import read_oifits
    assert read_oifits.__module__ == "calami.fringes.oifits"


def test_a_page_is_no_old_name():
    from calami.archive import download

    assert download.__name__ == "calami.archive.download"


def test_what_never_was_is_an_attribute_error():
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        from calami.oifits import nonsense  # noqa: F401
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("calami.nonsense")


def test_every_place_that_is_named_exists():
    for places in MOVED.values():
        for place in places.split():
            assert importlib.import_module(f"calami.{place}")


def test_a_user_is_told_where_he_wrote_it():
    code = "from calami.niriss import GAIN\nimport calami.headers as h\nh.parse_name\n"
    run = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert "<string>:1: DeprecationWarning: calami.niriss.GAIN is now calami.instrument.niriss.GAIN" in run.stderr
    assert "<string>:3: DeprecationWarning: calami.headers.parse_name" in run.stderr
